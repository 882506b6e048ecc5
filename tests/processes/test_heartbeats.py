"""Heartbeat links: they never block, notice the end of a peer, and accept no strangers."""

from __future__ import annotations

import socket
from dataclasses import asdict

import pytest

from moco_accel.processes import heartbeats
from moco_accel.processes.heartbeats import Heartbeat, HeartbeatLink


def test_a_link_never_blocks_and_notices_the_end() -> None:
    beat = asdict(Heartbeat("here", 7, "the keys", 1.5, 90.0))
    one, other = socket.socketpair()
    sender, receiver = HeartbeatLink(one), HeartbeatLink(other)
    sender.send(beat)
    one.send(b'{"bye": tr')
    assert list(receiver.receive()) == [beat]
    one.send(b"ue}\nno json\n")
    assert list(receiver.receive()) == [{"bye": True}]
    for _ in range(20):
        sender.send({"end": "x" * 100_000})  # more than a socket holds, and nobody reads
    assert receiver.is_open
    assert all(message == {"end": "x" * 100_000} for message in receiver.receive())
    one.close()
    assert list(receiver.receive()) == []
    assert not receiver.is_open
    other.close()


def test_strangers_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    server = heartbeats._listen()
    assert server is not None
    for greeting, rank in ((b"41 1\n", None), (b"42 1\n", 1), (b"42 one\n", None), (b"4" * 100, None), (b"", None)):
        with socket.create_connection(server.getsockname()) as caller:
            caller.sendall(greeting)
            caller.shutdown(socket.SHUT_WR)
            with server.accept()[0] as accepted:
                assert heartbeats._receive_greeting(accepted, 42) == rank
    server.close()
