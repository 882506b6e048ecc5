"""kill -9 in every phase of a run: what is resumed ends as if nothing had been, to the byte, and no process is left."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.killed_runs import PHASES, KilledRuns, Outcome, draw_case
from support.run_differences import logs, rows_of
from support.saved_runs import SavedRun
from support.trainer_processes import Trainer, start_quick

from moco_accel.checkpoints.run_folder import newest_whole

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")

CASES = 200
GONE_SECONDS = 30.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KilledRuns]:
    folder = tmp_path_factory.mktemp("kills")
    with KilledRuns(folder) as runs:
        yield runs
    shutil.rmtree(folder)


def check(outcome: Outcome) -> None:
    assert outcome.differences == [], outcome
    for kill in outcome.kills:
        assert kill["landed"] or kill["asked"] == "anywhere", outcome  # which may come when the run has ended
        assert not kill["landed"] or kill["gone_after"] < GONE_SECONDS, outcome


def test_a_run_killed_in_every_phase_ends_as_one_that_was_not(runs: KilledRuns) -> None:
    """Six kills and six resumes, five of them in one epoch: before the first checkpoint, and in all that follow."""
    outcome = runs.run(787, ["start", "step", "load", "save", "rename", "rotate"], "adamw, queue")
    check(outcome)
    assert [kill["phase"].split()[0] for kill in outcome.kills] == ["start", "step", "load", "save", "rename", "rotate"]
    assert outcome.resumes_in_one_epoch >= 5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(CASES))
def test_two_hundred_kills(seed: int, runs: KilledRuns, tmp_path: Path) -> None:
    """Phase, place, process, turn, kind of run and how many kills in turn: all drawn from the seed."""
    check(runs.run(seed, *draw_case(seed)))


def test_the_cases_are_what_they_claim() -> None:
    """At least 20 for each phase as their main one, and enough with so many kills that an epoch has five resumes."""
    cases = [draw_case(seed)[0] for seed in range(CASES)]
    assert all(sum(phase in phases for phases in cases) >= 28 for phase in PHASES)
    assert sum(len(phases) == 7 for phases in cases) == 40


def kill_one(tmp_path: Path, tiles: Path, start: str, victim: str, when: str) -> None:
    """One process of a run that a real launcher started; all others follow it."""
    trainer = start_quick(tmp_path, tiles, start, when)
    try:
        trainer.wait_for_phase(when)
        ranks = trainer.ranks()
        pids = {"launcher": trainer.process.pid, "first rank": ranks[0], "last rank": ranks[-1]}
        if victim == "loader worker":
            trainer.wait_for(lambda: bool(workers(trainer)))
            pids[victim] = workers(trainer)[-1]
        os.kill(pids[victim], signal.SIGKILL)
        killed_at = time.monotonic()
        trainer.finish(GONE_SECONDS)
        assert time.monotonic() - killed_at < GONE_SECONDS
    finally:
        trainer.kill()
    passed_over: list[str] = []
    newest_whole(tmp_path / "run", passed_over.append)
    assert not any("damaged" in line for line in passed_over)


def workers(trainer: Trainer) -> list[int]:
    ranks = set(trainer.ranks())
    return [int(pid) for rank in ranks for pid in Path(f"/proc/{rank}/task/{rank}/children").read_text().split()]


def test_what_a_kill_in_the_last_save_left_is_tidied(tmp_path: Path) -> None:
    """No other save comes to do it: `latest` is pointed on, what is half written or half removed goes."""
    before = SavedRun(tmp_path / "run")
    before.train(1)
    before.save()
    before.train(1)
    last = before.save()
    (tmp_path / "run" / "latest").write_text("step_00000001\n")
    for name in ("step_00000000.removed", "step_00000003.partial"):
        (last.parent / name).mkdir()
    assert SavedRun(tmp_path / "run").step == 2
    assert (tmp_path / "run" / "latest").read_text() == "step_00000002\n"
    assert sorted(path.name for path in last.parent.iterdir()) == ["step_00000001", "step_00000002"]


def test_one_rank_killed_leaves_no_process(runs: KilledRuns, tmp_path: Path) -> None:
    """Nor a loader worker, whose trainer could not end it; the other rank ends with an error, and so the launcher."""
    kill = {"phase": "start step", "nth": 200, "rank": 1, "victims": "own"}
    said = runs.launch("adamw, queue", tmp_path / "run", kill=kill)
    assert said["code"] == 1
    assert "left" not in said
    [killed] = rows_of(tmp_path / "run.notes" / "killed.jsonl")
    assert said["ended"] - killed["time"] < GONE_SECONDS
    assert "rank 1" in logs(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["first batch", "step", "save"])
@pytest.mark.parametrize(
    ("start", "victim"),
    [
        ("torchrun", "first rank"),
        ("torchrun", "last rank"),
        ("torchrun", "launcher"),
        ("torchrun", "loader worker"),
        ("accelerate", "first rank"),
        ("accelerate", "launcher"),
        ("accelerate", "loader worker"),
        ("python", "loader worker"),
    ],
)
def test_one_process_killed_leaves_none(start: str, victim: str, when: str, tmp_path: Path, tiles_folder: Path) -> None:
    kill_one(tmp_path, tiles_folder, start, victim, when)
