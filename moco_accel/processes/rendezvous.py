"""Where processes meet, torch's store at MASTER_ADDR and MASTER_PORT, and by which network they reach each other."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from moco_accel.common.errors import UserError
from moco_accel.processes import diagnosis
from moco_accel.processes.launch_checks import Launch

SAY_AFTER_SECONDS = 10.0
LATER_TIMEOUT = timedelta(minutes=30)
"""Torch's own, once all have come: kernels may be compiled before the first tensor is sent."""
_TRY_SECONDS = 5.0
_BETWEEN_SECONDS = 0.2
_ADDRESS_OF_INTERFACE = 0x8915  # SIOCGIFADDR

Say = Callable[[str], None]
Store = Any
"""Torch's, which it leaves untyped."""


def open_store(launch: Launch, seconds: float, say: Say) -> Store:
    """Served by the first process, unless its launcher does. Raises UserError if nobody can be reached in time."""
    served = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    begun = time.monotonic()
    _reach(launch, served, seconds, say)  # torch would try as long, with a page of words for each try
    left = max(_TRY_SECONDS, seconds - (time.monotonic() - begun))
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            launch.address,
            launch.port,
            launch.processes,
            is_master=served,
            timeout=timedelta(seconds=left),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) or "in use" in str(error):
            raise UserError(
                f"rank 0 cannot be met at {_where(launch)}: another process has that port; "
                f"MASTER_PORT={launch.port + 1}, on all nodes, may be free"
            ) from None
        raise _nobody(launch, seconds, diagnosis.in_words(error)) from None


def within(store: Store, name: str) -> Store:
    """A part of it, in which keys are its own."""
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def _reach(launch: Launch, served: bool, seconds: float, say: Say) -> None:
    """Wait until somebody listens there; who will serve there itself, until the name is known. Raises UserError."""
    begun, has_said = time.monotonic(), False
    while True:
        try:
            if served:
                socket.getaddrinfo(launch.address, launch.port)
            else:
                socket.create_connection((launch.address, launch.port), _TRY_SECONDS).close()
            return
        except (OSError, OverflowError, UnicodeError) as error:
            waited = time.monotonic() - begun
            if waited > seconds:
                raise _nobody(launch, seconds, getattr(error, "strerror", None) or str(error)) from None
        if waited > SAY_AFTER_SECONDS and not has_said and os.environ.get("LOCAL_RANK", "0") == "0":
            say(f"rank {launch.rank} tries to reach the meeting place, {_where(launch)}, for at most {seconds:g} s")
            has_said = True
        time.sleep(_BETWEEN_SECONDS)


def _nobody(launch: Launch, seconds: float, why: str) -> UserError:
    return UserError(
        f"rank {launch.rank} of {launch.processes} has tried for {seconds:g} s to reach the meeting place, "
        f"{_where(launch)}, in vain ({why}); see that node 0 was started, that this is its address as this node sees "
        "it, and that no firewall closes the port. A larger run.rendezvous_seconds waits longer"
    )


def _where(launch: Launch) -> str:
    return f"MASTER_ADDR={launch.address} MASTER_PORT={launch.port}"


def choose_interface(address: str) -> None:
    """Tell gloo by which network other hosts are reached: the one that `address`, MASTER_ADDR, is on.

    It would take the address of this host's own name, which often is one that no other host knows, as 127.0.1.1 is.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        resolved = socket.gethostbyname(address)
        if ipaddress.ip_address(resolved).is_loopback:
            return
        any_socket.connect((resolved, 9))  # which sends nothing
        own = any_socket.getsockname()[0]
        for _, name in socket.if_nameindex():
            if _address_of(name, any_socket) == own:
                os.environ["GLOO_SOCKET_IFNAME"] = name


def _address_of(interface: str, any_socket: socket.socket) -> str | None:
    with suppress(OSError):  # it has none
        answer = fcntl.ioctl(any_socket.fileno(), _ADDRESS_OF_INTERFACE, struct.pack("256s", interface.encode()))
        return socket.inet_ntoa(answer[20:24])
    return None
