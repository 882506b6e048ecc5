"""Watchdog: when a rank dies or stalls, or a loader worker hangs or is killed, all ranks end and name the cause."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.trainer_processes import ENVIRONMENT, Trainer, quick_recipe
from support.watched_processes import Case

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and process groups"),
    pytest.mark.timeout(300),
]
STALL_SECONDS = 8.0
SCRIPT = Path(__file__).parents[1] / "support" / "watched_processes.py"

# a case, what the output has from the rank at fault, and from the others
ENDS: list[tuple[Case, str, str]] = [
    (Case("nothing"), "", ""),
    (Case("kill", rank=0), "", "rank 0 (process"),
    (Case("error"), "ValueError: planted by a test", "rank 1 failed (ValueError: planted by a test); see its error"),
    (Case("stop"), "", "has stalled: no heartbeat for"),
    (Case("loop"), "in loop_forever", "rank 1 has stalled: "),
    (Case("kill", "tile", rank=0, size=1, workers=1), "error: loader worker", ""),
    (Case("error", "tile", rank=0, size=1, workers=1), "worker 0 failed: ValueError: planted by a test; --resume", ""),
    (Case("slow", "forward", rank=0, size=1, stall_seconds=5.0), "", ""),  # the first step may take ten times as long
    (
        Case("memory", sharded=True),
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
    (Case("error", rank=0), "ValueError: planted by a test", "rank 0 failed (ValueError"),
    (Case("error", "model", size=3), "ValueError: planted by a test", "rank 1 failed (ValueError"),
    (Case("stop", rank=0), "", "has stalled: no heartbeat for"),
    (Case("stop", size=3, workers=1), "", "has stalled: no heartbeat for"),
    (Case("lock"), "in lock_forever", "has stalled: no heartbeat for"),
    (Case("loop", size=3, rank=2), "in loop_forever", "rank 2 has stalled: "),
    (Case("loop", rank=0, size=1), "in loop_forever", ""),
    (Case("loop", "tile", rank=0, size=1), "reads tile", ""),
    (Case("loop", "tile", workers=2), "in loop_forever", "rank 1 has stalled: "),
    (Case("lock", "tile", rank=0, size=1, workers=1), "in lock_forever", ""),
    (Case("kill", "tile", workers=2), "error: loader worker", "rank 1 failed (loader worker"),
]


def check_end(case: Case, own: str, others: str, end: dict[str, Any]) -> None:
    """Check that all processes end in time, and that the rank at fault prints its error before the others name it."""
    output, codes = end["output"], end["codes"]
    if case.fault in ("nothing", "slow"):
        assert codes == [0] * case.size, output
        assert "error" not in output
        return
    first_batch = 4 if case.place == "tile" and case.fault != "kill" else 1
    is_stall = case.fault in ("stop", "loop", "lock")
    assert end["seconds"] is not None, f"{case} did not end: {output[-3000:]}"
    assert end["seconds"] < (first_batch * STALL_SECONDS + 15 if is_stall else 30), output[-3000:]
    codes_of_others = codes[: case.rank] + codes[case.rank + 1 :]
    assert codes_of_others == [2] * (case.size - 1), output[-3000:]
    assert codes[case.rank] == expected_code(case, codes[case.rank])
    assert codes[case.rank] != 0 or case.fault == "exit"
    assert own in output, output[-3000:]
    lines = [line for line in output.splitlines() if line.startswith("error on rank ") and others in line]
    assert len(lines) == (case.size if others.endswith("stalled: ") else case.size - 1), output[-3000:]
    assert f"rank {case.rank} " in (lines[0].partition(": ")[2] if lines else f"rank {case.rank} ")
    assert output.count("Traceback") == (case.fault == "error"), output[-3000:]
    if own and not is_stall and lines:
        assert output.index(own) < output.index(lines[0])


def expected_code(case: Case, code: int) -> int:
    of_worker = {"error": 2} if case.workers and case.place == "tile" else {}
    return ({"exit": 0, "error": 1, "crash": -11} | of_worker).get(case.fault, code)


def check_ends(expected: list[tuple[Case, str, str]], tiles: Path, folder: Path) -> None:
    """Run all cases at once, and check each."""
    cases = json.dumps([asdict(case) for case, _, _ in expected])
    command = [sys.executable, str(SCRIPT), str(tiles), str(folder), cases]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ends = [json.loads(row) for row in done.stdout.splitlines()]
    for (case, own, others), end in zip(expected, ends, strict=True):
        print(case, end["seconds"])
        check_end(case, own, others, end)


def test_all_ranks_end_and_name_the_cause(tiles_folder: Path, tmp_path: Path) -> None:
    check_ends(ENDS, tiles_folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(MORE_ENDS), 6))
def test_more_faults(first: int, tiles_folder: Path, tmp_path: Path) -> None:
    check_ends(MORE_ENDS[first : first + 6], tiles_folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_faults_under_a_launcher(number: signal.Signals, rank: int, tiles_folder: Path, tmp_path: Path) -> None:
    trainer = Trainer("torchrun", tmp_path / "run", quick_recipe(tmp_path, tiles_folder, 2, stall_seconds=8))
    try:
        trainer.wait_for(lambda: trainer.rows() >= 3)
        os.kill(trainer.ranks()[rank], number)
        assert trainer.finish(40) != 0
    finally:
        trainer.kill()
    output = trainer.output().partition("torch/distributed/elastic")[0]  # before the launcher's own
    assert f"error on rank {1 - rank}: rank {rank} (process " in output
    # a thread of multiprocessing that was stopped while it passed on a tile may show a traceback
    assert all("resource_sharer" in trace for trace in output.split("Traceback")[1:]), output
