"""Diagnosis: time limits, the ranks to blame, and the messages."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest
import torch

from moco_accel.processes import diagnosis
from moco_accel.processes.diagnosis import allowed_seconds, describe_lost_worker, find_stall
from moco_accel.processes.heartbeats import Heartbeat


def beat(phase: str = "the keys", seconds: float = 0.0, limit: float = 90.0, **more: Any) -> Heartbeat:
    return Heartbeat("here", 7, phase, seconds, limit, **more)


@pytest.mark.parametrize(
    ("phase", "stall_seconds", "median_step_seconds", "expected"),
    [
        ("the keys", 90, 2.0, 90),
        ("the keys", 90, 60.0, 600),  # a small GPU with a large batch
        ("data", 90, 2.0, 90),
        ("data", 90, None, 360),  # the first batch
        ("the keys", 90, None, 900),  # the first step
        ("", 90, None, 90),  # heartbeats come all the same
        ("checkpoint", 90, 2.0, 900),
        ("evaluation", 90, 20.0, 2000),
        ("start", 90, None, inf),
        ("data", None, 2.0, inf),
    ],
)
def test_allowed_seconds(
    phase: str, stall_seconds: float | None, median_step_seconds: float | None, expected: float
) -> None:
    assert allowed_seconds(phase, stall_seconds, median_step_seconds) == expected


def test_the_ranks_to_blame() -> None:
    waiting = beat("data", 95, waits=True)
    late = beat("view 1's forward and backward", 91, position="forward at vit.py:3")
    silence = {0: 0.0, 1: 1.0, 2: 1.0}
    assert find_stall({0: waiting, 1: beat(seconds=89), 2: waiting}, silence, 90, "here") is None
    assert find_stall({0: waiting, 1: beat("checkpoint", 600, 900), 2: waiting}, silence, 90, "here") is None
    assert find_stall({0: beat("start", 900, inf)}, {0: 0.0}, inf, "here") is None
    assert find_stall({0: waiting, 1: late, 2: beat(seconds=3)}, silence, 90, "here") == (
        [1],
        "rank 1 has stalled: 91 s in view 1's forward and backward (forward at vit.py:3), limit 90 s; --resume "
        "continues from the last checkpoint, a larger run.stall_seconds waits longer",
    )
    blamed, line = find_stall({0: waiting, 1: beat(seconds=60), 2: late}, silence, 90, "here") or ([], "")
    assert blamed == [2, 1]
    assert "rank 2 has stalled: 91 s in view 1's forward and backward (forward at vit.py:3) and rank 1" in line
    blamed, line = find_stall({0: waiting, 1: late, 2: beat("data")}, {0: 0, 1: 1, 2: 91}, 90, "here") or ([], "")
    assert blamed == [2]
    assert line.startswith("rank 2 (process 7) has stalled: no heartbeat for 91 s, last phase data; ")
    blamed, line = find_stall({0: waiting, 1: waiting}, silence, 90, "here") or ([], "")
    assert blamed == [0, 1]
    assert line.startswith("all ranks wait for each other (rank 0 in data, rank 1 in data)")


def test_another_host_is_named_and_lost_as_a_whole() -> None:
    on = {host: replace(beat("the keys"), host=f"{host} pid:[40]") for host in ("north", "south")}
    beats = {0: on["north"], 1: on["north"], 2: on["south"], 3: on["south"]}
    silence = {0: 0.0, 1: 1.0, 2: 91.0, 3: 90.0}
    lost = "on south (process 7) cannot be reached (its host or the network is down, or it hangs): no heartbeat for"
    assert find_stall(beats, silence, 90, "north pid:[40]") == (
        [2, 3],
        f"rank 2 {lost} 91 s, last phase the keys and rank 3 {lost} 90 s, last phase the keys; --resume continues from "
        "the last checkpoint",
    )
    blamed, line = find_stall(beats, {**silence, 1: 92.0, 2: 1.0}, 90, "north pid:[40]") or ([], "")
    assert blamed == [1]
    assert line.startswith("rank 1 on north (process 7) has stalled: no heartbeat for 92 s, last phase the keys; ")
    blamed, line = find_stall({0: on["north"]}, {0: 91.0}, 90, "south pid:[40]") or ([], "")  # seen from rank 2
    assert blamed == [0]
    assert line.startswith("rank 0 on north (process 7) cannot be reached (its host or the network is down, or it")
    slow = {**beats, 3: replace(on["south"], seconds=95.0)}
    assert "rank 3 on south has stalled: 95 s in the" in (find_stall(slow, silence, inf, "north pid:[40]") or "")[1]
    assert diagnosis.describe_rank(1, "", {"", "north pid:[40]"}) == "rank 1"  # before its first heartbeat


def test_errors_that_follow_from_the_end_of_another_rank() -> None:
    gloo = RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1")
    assert diagnosis.is_lost_connection(gloo)
    assert diagnosis.is_lost_connection(torch.distributed.DistBackendError("NCCL error: remote process exited"))
    for own in (RuntimeError("shapes do not match"), ValueError("gloo"), torch.OutOfMemoryError("CUDA out of memory")):
        assert not diagnosis.is_lost_connection(own)


def test_the_death_of_a_loader_worker() -> None:
    killed = RuntimeError("DataLoader worker (pid 31) is killed by signal: Killed. ")
    line = describe_lost_worker(killed, [(30, 5), (31, 12)], killed_for_memory=True) or ""
    assert line.startswith(
        "loader worker 31 died at tile 12: Killed; the kernel killed processes because host memory ran out"
    )
    assert "fewer data.num_workers" in line
    full = RuntimeError("DataLoader worker (pid 31) is killed by signal: Bus error. It is possible that dataloader's …")
    assert "/dev/shm" in (describe_lost_worker(full, [], False) or "")
    two = RuntimeError("DataLoader worker (pid(s) 31, 32) exited unexpectedly")
    assert (describe_lost_worker(two, [], False) or "").startswith(
        "loader worker 31, 32 died: killed, or crashed; most often because host memory ran out"
    )
    assert describe_lost_worker(RuntimeError("DataLoader timed out"), [], False) is None
    memory = diagnosis.read_host_memory()
    assert memory is None or 0 < memory[0] < memory[1]
