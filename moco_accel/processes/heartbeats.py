"""Heartbeat connections: one TCP link from each rank to rank 0, beside the connections that carry tensors.

Messages are lines of JSON. A process that dies closes its link, however it dies; a stopped process stops sending.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import secrets
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_accel.processes.control_group import FAILED, HEALTHY, ControlGroup

_CONNECT_SECONDS = 30.0
_MAX_GREETING_BYTES = 64

Message = dict[str, Any]

_links: weakref.WeakSet[HeartbeatLink] = weakref.WeakSet()


@dataclass(frozen=True)
class Heartbeat:
    """State that a rank sends every second.

    Attributes:
        host: See `host_id`.
        seconds: Time in `phase` without progress.
        limit: Most seconds allowed there; may be infinite.
        waits: True while the rank waits for other ranks.
        position: Where the main thread is; filled in once `seconds` is long.
    """

    host: str
    pid: int
    phase: str
    seconds: float
    limit: float
    waits: bool = False
    position: str = ""


class HeartbeatLink:
    """A connection to another rank that never blocks; messages that the peer does not read are dropped."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket, self._unread, self._is_clogged = connection, b"", False
        self.is_open = True
        _links.add(self)

    def send(self, message: Message) -> None:
        """Send a message, or drop it if the connection is full or closed."""
        line = json.dumps(message).encode() + b"\n"
        if self._is_clogged:  # another line would follow the cut one
            return
        try:
            self._is_clogged = self.socket.send(line) < len(line)
        except OSError:  # `receive` finds out whether it is closed
            self._is_clogged = True

    def receive(self) -> Iterator[Message]:
        """Yield the messages that have arrived. Sets `is_open` to False once the peer has closed the connection."""
        try:
            while received := self.socket.recv(1 << 16):
                self._unread += received
            self.is_open = False
        except BlockingIOError:
            pass
        except OSError:
            self.is_open = False
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            with suppress(ValueError):
                yield json.loads(line)


def _close_all() -> None:
    for link in list(_links):
        link.socket.close()


# a loader worker inherits its trainer's connections, and would keep them open after the trainer's death
os.register_at_fork(after_in_child=_close_all)


def host_id() -> str:
    """Return a name that processes share if, and only if, they see each other's process ids."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def connect_ranks(control_group: ControlGroup, rank: int, size: int) -> dict[int, HeartbeatLink]:
    """Connect rank 0 with every other rank.

    Returns:
        Links by rank: on rank 0 to all others, elsewhere to rank 0. Empty on all ranks if one cannot connect.
    """
    server = _listen() if rank == 0 else None
    port = control_group.all_gather(server.getsockname()[1] if server else 0)[0]
    token = control_group.all_gather(secrets.randbits(62) if rank == 0 else 0)[0]  # keeps strangers out
    links: dict[int, HeartbeatLink] = {}
    with suppress(OSError):
        links = _accept(server, token, size) if server else {0: _connect_to_rank_zero(port, token, rank)}
    if server:
        server.close()
    return links if control_group.max_over_ranks(HEALTHY if links else FAILED) == HEALTHY else {}


def _address() -> str:
    return os.environ.get("MASTER_ADDR", "localhost")


def _is_local() -> bool:
    return ipaddress.ip_address(socket.gethostbyname(_address())).is_loopback


def _listen() -> socket.socket | None:
    try:
        if _is_local():
            return socket.create_server(("127.0.0.1", 0))
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", 0))
    except OSError:
        return None


def _accept(server: socket.socket, token: int, size: int) -> dict[int, HeartbeatLink]:
    links: dict[int, HeartbeatLink] = {}
    deadline = time.monotonic() + _CONNECT_SECONDS
    while len(links) < size - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        connection, _ = server.accept()
        rank = _receive_greeting(connection, token)
        if rank is None or not 0 < rank < size or rank in links:
            connection.close()
        else:
            links[rank] = HeartbeatLink(connection)
    return links


def _receive_greeting(connection: socket.socket, token: int) -> int | None:
    """Return the rank of the caller; None if it does not know the token."""
    connection.settimeout(5)
    try:
        with connection.makefile("rb", buffering=0) as file:  # a buffer would take what follows the greeting
            received, rank = file.readline(_MAX_GREETING_BYTES).decode().split()
        return int(rank) if hmac.compare_digest(received, str(token)) else None
    except (OSError, ValueError, TypeError):
        return None


def _connect_to_rank_zero(port: int, token: int, rank: int) -> HeartbeatLink:
    connection = socket.create_connection(("127.0.0.1" if _is_local() else _address(), port), timeout=_CONNECT_SECONDS)
    connection.sendall(f"{token} {rank}\n".encode())
    return HeartbeatLink(connection)
