"""Processes that die or stall, loader workers that hang or are killed: all ends, in one line each, and says why."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.trainer_processes import ENVIRONMENT, Trainer, quick_recipe
from support.watched_processes import Case

from moco_accel.common.errors import UserError
from moco_accel.processes import diagnosis, heartbeats
from moco_accel.processes.control_group import Agreement
from moco_accel.processes.diagnosis import allowed_seconds, stalled
from moco_accel.processes.heartbeats import Beat, Link
from moco_accel.recipe.constants import ASSUMED_SHARES
from moco_accel.recipe.hardware_sections import Planned
from moco_accel.training.card_memory import PlannedMemory, compared, holders, too_small

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for what is left of a process")
STALL_SECONDS = 8.0


def beat(phase: str = "the keys", seconds: float = 0.0, limit: float | None = 90.0, **more: Any) -> Beat:
    return Beat("here", 7, phase, seconds, limit, **more)


@pytest.mark.parametrize(
    ("phase", "stall_seconds", "median_step_seconds", "expected"),
    [
        ("the keys", 90, 2.0, 90),
        ("the keys", 90, 60.0, 600),  # a small card at a large batch
        ("data", 90, 2.0, 90),
        ("data", 90, None, 360),  # the first batch
        ("the keys", 90, None, 90),
        ("checkpoint", 90, 2.0, 900),
        ("evaluation", 90, 20.0, 2000),
        ("start", 90, None, None),
        ("data", None, 2.0, None),
    ],
)
def test_how_long_a_phase_may_last(
    phase: str, stall_seconds: float | None, median_step_seconds: float | None, expected: float | None
) -> None:
    assert allowed_seconds(phase, stall_seconds, median_step_seconds) == expected


def test_who_is_to_blame() -> None:
    waiting = beat("data", 95, waits=True)
    late = beat("view 1's forward and backward", 91, where="forward at vit.py:3")
    silent = {0: 0.0, 1: 1.0, 2: 1.0}
    assert stalled({0: waiting, 1: beat(seconds=89), 2: waiting}, silent, 90) is None
    assert stalled({0: waiting, 1: beat("checkpoint", 600, 900), 2: waiting}, silent, 90) is None
    assert stalled({0: beat("start", 900, None)}, {0: 0.0}, None) is None
    assert stalled({0: waiting, 1: late, 2: beat(seconds=3)}, silent, 90) == (
        [1],
        "rank 1 has stalled: 91 s in view 1's forward and backward (forward at vit.py:3), where 90 s are allowed; "
        "--resume goes on from the last checkpoint, a larger run.stall_seconds waits longer",
    )
    blamed, line = stalled({0: waiting, 1: beat(seconds=60), 2: late}, silent, 90) or ([], "")
    assert blamed == [2, 1]
    assert "rank 2 has stalled: 91 s in view 1's forward and backward (forward at vit.py:3) and rank 1" in line
    blamed, line = stalled({0: waiting, 1: late, 2: beat("data")}, {0: 0, 1: 1, 2: 91}, 90) or ([], "")
    assert blamed == [2]
    assert line.startswith("rank 2 (process 7) has stalled: no word for 91 s, the last from data; ")
    blamed, line = stalled({0: waiting, 1: waiting}, silent, 90) or ([], "")
    assert blamed == [0, 1]
    assert line.startswith("all ranks wait for each other (rank 0 in data, rank 1 in data)")


def test_another_host_is_named_and_lost_as_a_whole() -> None:
    on = {host: replace(beat("the keys"), host=f"{host} pid:[40]") for host in ("north", "south")}
    beats = {0: on["north"], 1: on["north"], 2: on["south"], 3: on["south"]}
    quiet = {0: 0.0, 1: 1.0, 2: 91.0, 3: 90.0}
    away = "on south (process 7) cannot be reached (its host or the network is down, or it hangs): no word for"
    assert stalled(beats, quiet, 90, "north pid:[40]") == (
        [2, 3],
        f"rank 2 {away} 91 s, the last from the keys and rank 3 {away} 90 s, the last from the keys; --resume goes on "
        "from the last checkpoint",
    )
    blamed, line = stalled(beats, {**quiet, 1: 92.0, 2: 1.0}, 90, "north pid:[40]") or ([], "")
    assert blamed == [1]
    assert line.startswith("rank 1 on north (process 7) has stalled: no word for 92 s, the last from the keys; ")
    blamed, line = stalled({0: on["north"]}, {0: 91.0}, 90, "south pid:[40]") or (
        [],
        "",
    )  # as another than the first sees it
    assert blamed == [0]
    assert line.startswith("rank 0 on north (process 7) cannot be reached (its host or the network is down, or it")
    slow = replace(on["south"], seconds=95.0)
    assert (
        "rank 3 on south has stalled: 95 s in the" in (stalled({**beats, 3: slow}, {}, None, "north pid:[40]") or "")[1]
    )
    assert diagnosis.named(1, "", {"", "north pid:[40]"}) == "rank 1"  # who has said nothing yet


def test_errors_that_are_another_process_end() -> None:
    gloo = RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1")
    assert diagnosis.is_lost_connection(gloo)
    assert diagnosis.is_lost_connection(torch.distributed.DistBackendError("NCCL error: remote process exited"))
    for own in (RuntimeError("shapes do not match"), ValueError("gloo"), torch.OutOfMemoryError("CUDA out of memory")):
        assert not diagnosis.is_lost_connection(own)


def test_a_lost_worker_in_words() -> None:
    killed = RuntimeError("DataLoader worker (pid 31) is killed by signal: Killed. ")
    words = diagnosis.lost_worker(killed, [(30, 5), (31, 12)], killed_for_memory=True) or ""
    assert words.startswith(
        "loader worker 31 is gone, at tile 12: Killed; the kernel has killed for want of host memory"
    )
    assert "fewer data.num_workers" in words
    full = RuntimeError("DataLoader worker (pid 31) is killed by signal: Bus error. It is possible that dataloader's …")
    assert "/dev/shm" in (diagnosis.lost_worker(full, [], False) or "")
    gone = diagnosis.lost_worker(RuntimeError("DataLoader worker (pid(s) 31, 32) exited unexpectedly"), [], False) or ""
    assert gone.startswith("loader worker 31, 32 is gone: killed, or crashed; most often for want of host memory")
    assert diagnosis.lost_worker(RuntimeError("DataLoader timed out"), [], False) is None
    memory = diagnosis.host_memory()
    assert memory is None or 0 < memory[0] < memory[1]


def test_a_link_never_waits_and_tells_the_end() -> None:
    one, other = socket.socketpair()
    sender, receiver = Link(one), Link(other)
    sender.send(asdict(beat(seconds=1.5)))
    other_half = b'{"bye": tr'
    one.send(other_half)
    assert list(receiver.receive()) == [asdict(beat(seconds=1.5))]
    one.send(b"ue}\nno json\n")
    assert list(receiver.receive()) == [{"bye": True}]
    for _ in range(20):
        sender.send({"end": "x" * 100_000})  # nobody reads: more than a socket holds
    assert receiver.is_open
    assert all(message == {"end": "x" * 100_000} for message in receiver.receive())
    one.close()
    assert list(receiver.receive()) == []
    assert not receiver.is_open
    other.close()


def test_strangers_are_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    server = heartbeats._listen()
    assert server is not None
    for said, rank in ((b"41 1\n", None), (b"42 1\n", 1), (b"42 one\n", None), (b"4" * 100, None), (b"", None)):
        with socket.create_connection(server.getsockname()) as caller:
            caller.sendall(said)
            caller.shutdown(socket.SHUT_WR)
            with server.accept()[0] as accepted:
                assert heartbeats._greeted(accepted, 42) == rank
    server.close()


def test_a_plan_against_the_card_in_words() -> None:
    assert too_small(5050, 1, 3100, 8192, ["game 4500 MiB", "firefox 300 MiB"]) == (
        "planned.peak_reserved_mib=5050 does not fit rank 1's card: 3100 MiB of 8192 MiB are free, 1950 MiB too few "
        "(held by game 4500 MiB, firefox 300 MiB). What helps: close what else uses the card, or moco-plan --vram 3.0 "
        "plans for what is free"
    )
    assert compared(5050, 5250, 0.05) == "peak memory: predicted 5050 MiB, measured 5250 MiB, +4.0%"
    assert compared(5050, 5400, 0.05).startswith(
        "[yellow]peak memory: predicted 5050 MiB, measured 5400 MiB, +6.9%: more"
    )
    assert holders("12, 300, /usr/bin/firefox\n7, 9, me\n13, 4500, C:\\games\\game\n[N/A], x\n", own_pid=7) == [
        "game 4500 MiB",
        "firefox 300 MiB",
    ]
    assert ASSUMED_SHARES == {"ViT": 0.05, "ResNet": 0.10}


class Memory:
    """A card's free and peak memory, in MiB, in place of CUDA's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, *peaks: int) -> None:
        left = list(peaks)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free << 20, 8192 << 20))
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: left.pop(0) << 20)


PLANNED = Planned(peak_reserved_mib=5000, headroom_mib=1500, breakdown_mib={}, torch="2.11")


@pytest.mark.parametrize(
    ("planned", "free", "peaks", "expected"),
    [
        (None, 100, [], ["nothing was planned for this card; moco-plan --recipe says whether it fits"]),
        (PLANNED, 7000, [4800, 5100, 5200], ["peak memory: predicted 5000 MiB, measured 5100 MiB, +2.0%"]),
        (
            PLANNED,
            5100,
            [4800, 4900, 5300],
            [
                "[yellow]rank 0's card has 5100 MiB free for a planned peak of 5000 MiB, which may be off by 5%: it "
                "may not fit, and then runs in smaller micro-batches[/]",
                "peak memory: predicted 5000 MiB, measured 4900 MiB, -2.0%",
                "[yellow]peak memory: predicted 5000 MiB, measured 5300 MiB, +6.0%: more than the 5% by which the "
                "planner thinks it may be off[/]",
            ],
        ),
    ],
)
def test_plan_and_peak(
    planned: Planned | None, free: int, peaks: list[int], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Memory(monkeypatch, free, *peaks)
    said: list[str] = []
    memory = PlannedMemory(planned, "vit_small_patch16", Agreement(), torch.device("cuda"), said.append)
    memory.check()
    for _ in peaks:
        memory.after_step()
    assert said == expected


def test_a_plan_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch, 4999)
    monkeypatch.setattr("moco_accel.training.card_memory.others_on_card", lambda _: [])
    memory = PlannedMemory(PLANNED, "vit_small_patch16", Agreement(), torch.device("cuda"), print)
    with pytest.raises(UserError, match="=5000 does not fit rank 0's card: 4999 MiB of 8192 MiB are free, 1 MiB too"):
        memory.check()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_plan_against_a_real_card() -> None:
    said: list[str] = []
    fits, too_large = (PLANNED.model_copy(update={"peak_reserved_mib": size}) for size in (1, 1 << 21))
    device = torch.device("cuda", 0)
    memory = PlannedMemory(fits, "vit_small_patch16", Agreement(), device, said.append)
    memory.check()
    assert said == []
    held = torch.zeros(64 << 20, dtype=torch.uint8, device=device)
    for _ in range(2):
        memory.after_step()
    del held
    assert said[0].startswith("[yellow]peak memory: predicted 1 MiB, measured ")
    with pytest.raises(UserError, match="does not fit rank 0's card"):
        PlannedMemory(too_large, "vit_small_patch16", Agreement(), device, said.append).check()


ENDS: list[tuple[Case, str, str]] = [
    (Case("nothing"), "", ""),
    (Case("kill", rank=0), "", "rank 0 (process"),
    (Case("error"), "ValueError: as a test has it", "rank 1 failed (ValueError: as a test has it), as its own"),
    (Case("stop"), "", "has stalled: no word for"),
    (Case("loop"), "in loop_for_ever", "rank 1 has stalled: "),
    (Case("kill", "tile", rank=0, size=1, workers=1), "error: loader worker", ""),
    (
        Case("memory", divided=True),
        "out of memory, and with memory.fully_shard=true",
        "rank 1 failed (UserError: out of",
    ),
]
MORE_ENDS: list[tuple[Case, str, str]] = [
    (Case("kill"), "", "rank 1 (process"),
    (Case("kill", size=3), "", "rank 1 (process"),
    (Case("kill", "save", rank=0, workers=2), "", "rank 0 (process"),
    (Case("kill", "model"), "", "rank 1 "),
    (Case("exit"), "", "rank 1 (process"),
    (Case("crash"), "Fatal Python error: Segmentation fault", "rank 1 (process"),
    (Case("error", rank=0), "ValueError: as a test has it", "rank 0 failed (ValueError"),
    (Case("error", "model", size=3), "ValueError: as a test has it", "rank 1 failed (ValueError"),
    (Case("stop", rank=0), "", "has stalled: no word for"),
    (Case("stop", size=3, workers=1), "", "has stalled: no word for"),
    (Case("lock"), "in lock_for_ever", "has stalled: no word for"),
    (Case("loop", size=3, rank=2), "in loop_for_ever", "rank 2 has stalled: "),
    (Case("loop", rank=0, size=1), "in loop_for_ever", ""),
    (Case("loop", "tile", rank=0, size=1), "reads tile", ""),
    (Case("loop", "tile", workers=2), "in loop_for_ever", "rank 1 has stalled: "),
    (Case("lock", "tile", rank=0, size=1, workers=1), "in lock_for_ever", ""),
    (Case("kill", "tile", workers=2), "error: loader worker", "rank 1 failed (loader worker"),
]


def let_happen(cases: list[Case], tiles: Path, folder: Path) -> list[dict[str, Any]]:
    """What becomes of each; all run at once."""
    script = str(Path(__file__).parents[1] / "support" / "watched_processes.py")
    command = [sys.executable, script, str(tiles), str(folder), json.dumps([asdict(case) for case in cases])]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(row) for row in done.stdout.splitlines()]


def check_end(case: Case, own: str, others: str, end: dict[str, Any]) -> None:
    """Every process is gone in time, by itself; the one at fault speaks first; the others say who it is, in a line."""
    said, codes = end["said"], end["codes"]
    if case.what == "nothing":
        assert codes == [0] * case.size, said
        assert "error" not in said
        return
    first_batch = 4 if case.place == "tile" and case.what != "kill" else 1
    is_stall = case.what in ("stop", "loop", "lock")
    assert end["seconds"] is not None, f"{case} had to be ended: {said[-3000:]}"
    assert end["seconds"] < (first_batch * STALL_SECONDS + 15 if is_stall else 30), said[-3000:]
    codes_of_others = codes[: case.rank] + codes[case.rank + 1 :]
    assert codes_of_others == [2] * (case.size - 1), said[-3000:]
    assert codes[case.rank] == {"exit": 0, "error": 1, "crash": -11}.get(case.what, codes[case.rank])
    assert codes[case.rank] != 0 or case.what == "exit"
    assert own in said, said[-3000:]
    lines = [line for line in said.splitlines() if line.startswith("error on rank ") and others in line]
    assert len(lines) == (case.size if others.endswith("stalled: ") else case.size - 1), said[-3000:]
    assert f"rank {case.rank} " in (lines[0].partition(": ")[2] if lines else f"rank {case.rank} ")
    assert said.count("Traceback") == (case.what == "error"), said[-3000:]
    if own and not is_stall and lines:
        assert said.index(own) < said.index(lines[0])


def check_ends(expected: Any, tiles: Path, folder: Path) -> None:
    ends = let_happen([case for case, _, _ in expected], tiles, folder)
    for (case, own, others), end in zip(expected, ends, strict=True):
        print(case, end["seconds"])
        check_end(case, own, others, end)


@linux
@pytest.mark.timeout(300)
def test_whatever_happens_to_a_rank_all_end_and_say_it(tiles_folder: Path, tmp_path: Path) -> None:
    check_ends(ENDS, tiles_folder, tmp_path)


@linux
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, len(MORE_ENDS), 6))
def test_whatever_more_happens_to_a_rank_all_end_and_say_it(first: int, tiles_folder: Path, tmp_path: Path) -> None:
    check_ends(MORE_ENDS[first : first + 6], tiles_folder, tmp_path)


@linux
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_under_a_launcher_too(number: signal.Signals, rank: int, tiles_folder: Path, tmp_path: Path) -> None:
    trainer = Trainer("torchrun", tmp_path / "run", quick_recipe(tmp_path, tiles_folder, 2, stall_seconds=8))
    try:
        trainer.wait_for(lambda: trainer.rows() >= 3)
        os.kill(trainer.ranks()[rank], number)
        assert trainer.finish(40) != 0
    finally:
        trainer.kill()
    said = trainer.said()
    before_the_launcher = said.partition("torch/distributed/elastic")[0]
    assert f"error on rank {1 - rank}: rank {rank} (process " in before_the_launcher
    # a thread of multiprocessing's that was stopped in the midst of handing on a tile may show one
    traces = before_the_launcher.split("Traceback")[1:]
    assert all("resource_sharer" in trace for trace in traces), before_the_launcher
