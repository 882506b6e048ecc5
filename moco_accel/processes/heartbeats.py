"""Who is alive, and at what: a connection from each process to the first, beside those that tensors take.

Lines of JSON over TCP. A process that dies closes its connection, however it dies; one that is stopped falls silent.
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

from moco_accel.processes.control_group import FAILED, WELL, Agreement

_PATIENCE_SECONDS = 30.0
_LONGEST_GREETING = 64

Message = dict[str, Any]

_links: weakref.WeakSet[Link] = weakref.WeakSet()


@dataclass(frozen=True)
class Beat:
    """What a process says of itself every second.

    It has been in `phase` for `seconds` without getting on, of the `limit` it may (None: as long as it likes); `waits`
    if for other processes. `where` is filled in once that takes long.
    """

    host: str
    pid: int
    phase: str
    seconds: float
    limit: float | None
    waits: bool = False
    where: str = ""


class Link:
    """A connection to another process. Never waits: who does not read what is sent to it, misses it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket, self._unread, self._is_clogged = connection, b"", False
        self.is_open = True
        _links.add(self)

    def send(self, message: Message) -> None:
        line = json.dumps(message).encode() + b"\n"
        if self._is_clogged:  # a line once broken off leaves no place for another
            return
        try:
            self._is_clogged = self.socket.send(line) < len(line)
        except OSError:  # full, or closed: what is received will tell
            self._is_clogged = True

    def receive(self) -> Iterator[Message]:
        """What has come so far. At the other's end `is_open` becomes false."""
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


# a loader's worker has its trainer's connections, and would keep them open after its death
os.register_at_fork(after_in_child=_close_all)


def this_host() -> str:
    """The same for processes that see each other's ids, and for no others."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def connect(agreement: Agreement, rank: int, size: int) -> dict[int, Link]:
    """Links by rank: the first process's to all others, each other's to the first. Empty, on all, if one can't."""
    server = _listen() if rank == 0 else None
    port = agreement.all(server.getsockname()[1] if server else 0)[0]
    token = agreement.all(secrets.randbits(62) if rank == 0 else 0)[0]  # no one else may speak
    links: dict[int, Link] = {}
    with suppress(OSError):
        links = _accept(server, token, size) if server else {0: _reach(port, token, rank)}
    complete = len(links) == (size - 1 if rank == 0 else 1)
    if server:
        server.close()
    return links if agreement.worst(WELL if complete else FAILED) == WELL else {}


def _address() -> str:
    return os.environ.get("MASTER_ADDR", "localhost")


def _listen() -> socket.socket | None:
    try:
        if ipaddress.ip_address(socket.gethostbyname(_address())).is_loopback:
            return socket.create_server(("127.0.0.1", 0))
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", 0))
    except OSError:
        return None


def _accept(server: socket.socket, token: int, size: int) -> dict[int, Link]:
    links: dict[int, Link] = {}
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while len(links) < size - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        connection, _ = server.accept()
        rank = _greeted(connection, token)
        if rank is None or not 0 < rank < size or rank in links:
            connection.close()
        else:
            links[rank] = Link(connection)
    return links


def _greeted(connection: socket.socket, token: int) -> int | None:
    """The rank of the process that calls; None for a stranger."""
    connection.settimeout(5)
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < _LONGEST_GREETING:
            byte = connection.recv(1)  # no further: what follows is the link's
            if not byte:
                return None
            line += byte
        said, rank = line.decode().split()
        return int(rank) if hmac.compare_digest(said, str(token)) else None
    except (OSError, ValueError, TypeError):
        return None


def _reach(port: int, token: int, rank: int) -> Link:
    address = "127.0.0.1" if ipaddress.ip_address(socket.gethostbyname(_address())).is_loopback else _address()
    connection = socket.create_connection((address, port), timeout=_PATIENCE_SECONDS)
    connection.sendall(f"{token} {rank}\n".encode())
    return Link(connection)
