"""Open the rendezvous, torch's store at MASTER_ADDR and MASTER_PORT, and choose the network between hosts."""

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

LOG_AFTER_SECONDS = 10.0
_ATTEMPT_SECONDS = 5.0
_RETRY_SECONDS = 0.2
_SIOCGIFADDR = 0x8915  # the request for an interface's address

Log = Callable[[str], None]
Store = Any  # torch has no types for its stores


def open_store(launch: Launch, seconds: float, log: Log) -> Store:
    """Open the store. Rank 0 serves it, unless its launcher does.

    Raises:
        UserError: If the store cannot be reached within `seconds`, or its port is taken.
    """
    serves = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    begun = time.monotonic()
    _wait_until_reachable(launch, serves, seconds, log)  # torch would retry too, with a page of warnings each time
    left = timedelta(seconds=max(_ATTEMPT_SECONDS, seconds - (time.monotonic() - begun)))
    options: dict[str, Any] = {"is_master": serves, "timeout": left, "wait_for_workers": False, "multi_tenant": True}
    try:
        return dist.TCPStore(launch.address, launch.port, launch.world_size, **options)  # type: ignore[attr-defined]
    except (dist.DistError, RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) or "in use" in str(error):
            raise UserError(
                f"rank 0 cannot listen at {_describe_address(launch)}: another process has that port; "
                f"MASTER_PORT={launch.port + 1} on all nodes may be free"
            ) from None
        raise _unreachable(launch, seconds, diagnosis.describe_error(error)) from None


def _wait_until_reachable(launch: Launch, serves: bool, seconds: float, log: Log) -> None:
    """Wait until a process listens at the address; the process that will serve waits until the name resolves."""
    begun, has_logged = time.monotonic(), False
    while True:
        try:
            if serves:
                socket.getaddrinfo(launch.address, launch.port)
            else:
                socket.create_connection((launch.address, launch.port), _ATTEMPT_SECONDS).close()
            return
        except (OSError, OverflowError, UnicodeError) as error:
            waited = time.monotonic() - begun
            if waited > seconds:
                raise _unreachable(launch, seconds, getattr(error, "strerror", None) or str(error)) from None
        if waited > LOG_AFTER_SECONDS and not has_logged and os.environ.get("LOCAL_RANK", "0") == "0":
            log(f"rank {launch.rank} waits for the rendezvous at {_describe_address(launch)}, at most {seconds:g} s")
            has_logged = True
        time.sleep(_RETRY_SECONDS)


def _unreachable(launch: Launch, seconds: float, why: str) -> UserError:
    return UserError(
        f"rank {launch.rank} of {launch.world_size} could not reach the rendezvous at {_describe_address(launch)} "
        f"within {seconds:g} s ({why}); check that node 0 was started, that this is its address as this node sees it, "
        "and that no firewall blocks the port. A larger run.rendezvous_seconds waits longer"
    )


def _describe_address(launch: Launch) -> str:
    return f"MASTER_ADDR={launch.address} MASTER_PORT={launch.port}"


def choose_interface(address: str) -> None:
    """Make gloo use the network interface that reaches `address`, MASTER_ADDR, by GLOO_SOCKET_IFNAME.

    By default gloo uses the address of this host's own name, which other hosts often cannot reach, such as 127.0.1.1.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        resolved = socket.gethostbyname(address)
        if ipaddress.ip_address(resolved).is_loopback:
            return
        any_socket.connect((resolved, 9))  # sends nothing
        own = any_socket.getsockname()[0]
        for _, name in socket.if_nameindex():
            if _address_of(name, any_socket) == own:
                os.environ["GLOO_SOCKET_IFNAME"] = name


def _address_of(interface: str, any_socket: socket.socket) -> str | None:
    with suppress(OSError):  # an interface may have no address
        answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()))
        return socket.inet_ntoa(answer[20:24])
    return None
