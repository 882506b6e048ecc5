"""Kill a run in every phase: the resumed run ends byte-equal to an undisturbed one, and no process is left."""

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

from moco_accel.checkpoints.run_folder import newest_intact

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

CASES = 200
MAX_SECONDS_UNTIL_GONE = 30.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KilledRuns]:
    folder = tmp_path_factory.mktemp("kills")
    with KilledRuns(folder) as runs:
        yield runs
    shutil.rmtree(folder)


def check(outcome: Outcome) -> None:
    assert outcome.differences == [], outcome
    for kill in outcome.kills:
        assert kill["landed"] or kill["asked"] == "anywhere", outcome  # this kill may come after the run has ended
        assert not kill["landed"] or kill["gone_after"] < MAX_SECONDS_UNTIL_GONE, outcome


def test_a_run_killed_in_every_phase_equals_an_undisturbed_one(runs: KilledRuns) -> None:
    """Six kills and six resumes, five of them in one epoch, before and after the first checkpoint."""
    outcome = runs.run(787, ["start", "step", "load", "save", "rename", "rotate"], "adamw, queue")
    check(outcome)
    assert [kill["phase"].split()[0] for kill in outcome.kills] == ["start", "step", "load", "save", "rename", "rotate"]
    assert outcome.resumes_in_one_epoch >= 5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(CASES))
def test_two_hundred_kills(seed: int, runs: KilledRuns, tmp_path: Path) -> None:
    """The seed determines phases, places, processes, turns and variant of the run."""
    check(runs.run(seed, *draw_case(seed)))


def test_the_cases_cover_all_phases() -> None:
    """Every phase occurs in at least 28 cases, and 40 cases have seven kills."""
    cases = [draw_case(seed)[0] for seed in range(CASES)]
    assert all(sum(phase in phases for phases in cases) >= 28 for phase in PHASES)
    assert sum(len(phases) == 7 for phases in cases) == 40


def kill_one(tmp_path: Path, tiles: Path, start: str, victim: str, when: str) -> None:
    """Kill one process of a run that a real launcher started, and check that all others end."""
    trainer = start_quick(tmp_path, tiles, start, when)
    try:
        trainer.wait_for_phase(when)
        ranks = trainer.ranks()
        pids = {"launcher": trainer.process.pid, "first rank": ranks[0], "last rank": ranks[-1]}
        if victim == "loader worker":
            trainer.wait_for(lambda: bool(loader_workers(trainer)))
            pids[victim] = loader_workers(trainer)[-1]
        os.kill(pids[victim], signal.SIGKILL)
        killed_at = time.monotonic()
        trainer.finish(MAX_SECONDS_UNTIL_GONE)
        assert time.monotonic() - killed_at < MAX_SECONDS_UNTIL_GONE
    finally:
        trainer.kill()
    messages: list[str] = []
    newest_intact(tmp_path / "run", messages.append)
    assert not any("damaged" in line for line in messages)


def loader_workers(trainer: Trainer) -> list[int]:
    ranks = set(trainer.ranks())
    return [int(pid) for rank in ranks for pid in Path(f"/proc/{rank}/task/{rank}/children").read_text().split()]


def test_leftovers_of_a_kill_in_the_last_save_are_removed(tmp_path: Path) -> None:
    """Resuming updates `latest` and removes partial checkpoints, since no other save does."""
    run = SavedRun(tmp_path / "run")
    run.train(1)
    run.save()
    run.train(1)
    last = run.save()
    (tmp_path / "run" / "latest").write_text("step_00000001\n")
    for name in ("step_00000000.removed", "step_00000003.partial"):
        (last.parent / name).mkdir()
    assert SavedRun(tmp_path / "run").step == 2
    assert (tmp_path / "run" / "latest").read_text() == "step_00000002\n"
    assert sorted(path.name for path in last.parent.iterdir()) == ["step_00000001", "step_00000002"]


def test_one_rank_killed_leaves_no_process(runs: KilledRuns, tmp_path: Path) -> None:
    """The killed rank's loader workers end, and so do the other rank and the launcher, with an error."""
    kill = {"phase": "start step", "nth": 200, "rank": 1, "victims": "own"}
    result = runs.launch("adamw, queue", tmp_path / "run", kill=kill)
    assert result["code"] == 1
    assert "left" not in result
    [killed] = rows_of(tmp_path / "run.notes" / "killed.jsonl")
    assert result["ended"] - killed["time"] < MAX_SECONDS_UNTIL_GONE
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
def test_one_process_killed_leaves_no_process(
    start: str, victim: str, when: str, tmp_path: Path, tiles_folder: Path
) -> None:
    kill_one(tmp_path, tiles_folder, start, victim, when)
