"""moco-report on a run that was interrupted: its elapsed and remaining time, that it stopped, and how it continues."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.interruptions import StopBefore
from support.recipes import small_recipe
from support.trainer_processes import ENVIRONMENT, ROOT
from typer.testing import CliRunner

from moco_accel.checkpoints.run_log import elapsed_seconds, read_rows, read_run_log
from moco_accel.recipe.schema import Recipe
from moco_accel.report.cli import app
from moco_accel.report.curves import _why_no_knn
from moco_accel.training.console import RunState
from moco_accel.training.run import run_training

HOLD_LOCK = """
import sys, pathlib
from moco_accel.checkpoints.run_folder import lock_folder
from moco_accel.processes.control_group import ControlGroup
with lock_folder(pathlib.Path(sys.argv[1]), ControlGroup()):
    print("locked", flush=True)
    sys.stdin.read()
"""


def quick(tiles: Path, **run: int) -> Recipe:
    """Return a recipe of 2 epochs of 5 steps."""
    return small_recipe(
        encoder={"name": "resnet10", "image_size": 16, "freeze_patch_projection": False},
        batch={"micro_batch_size": 8, "accumulation_steps": 1},
        data={"source": str(tiles)},
        evaluation={"every_epochs": None},
        run={"log_every_steps": 1, "checkpoint_every_steps": 100} | run,
    )


def row(step: int, seconds: float, first_step: int | None = None) -> dict[str, Any]:
    started = {} if first_step is None else {"first_step": first_step}
    return {"step": step, "seconds": seconds, "tiles_per_second": 4.0, **started}


@pytest.mark.parametrize(
    ("rows", "steps_done", "seconds"),
    [
        ([], 0, 0),
        ([row(0, 5, 0), row(10, 30, 0)], 11, 30),
        ([row(0, 5, 0), row(10, 30, 0)], 16, 30 + 5 * 8 / 4),  # steps 11 to 15 are not logged: 8 tiles at 4 a second
        ([row(0, 5, 0), row(10, 30, 0), row(16, 45, 16)], 17, 45),
        ([row(0, 5), row(10, 30), row(16, 7), row(20, 9), row(30, 2)], 31, 30 + 9 + 2),  # of an earlier version
        ([row(0, 5), row(10, 30), row(16, 7), row(20, 40, 17)], 21, 40),  # resumed by this version
    ],
)
def test_seconds_of_all_processes_add_up(rows: list[dict[str, Any]], steps_done: int, seconds: float) -> None:
    assert elapsed_seconds(rows, small_recipe(), steps_done) == seconds


def test_a_resumed_run_adds_its_seconds_and_counts_repeated_steps_once(tmp_path: Path, tiles_folder: Path) -> None:
    run, recipe = tmp_path / "run", quick(tiles_folder)
    run_training(recipe, run, True, StopBefore(4))
    metrics = run / "metrics.jsonl"
    slow = [row | {"seconds": 1000.0 + row["step"]} for row in read_rows(metrics)]
    assert [row["step"] for row in slow] == [0, 1, 2, 3]
    killed = [slow[-1] | {"step": step, "seconds": 5000.0} for step in (4, 5)]  # after the checkpoint: done again
    metrics.write_text("".join(json.dumps(row) + "\n" for row in slow + killed))
    run_training(recipe, run, True, StopBefore(3))
    log = read_run_log(run)
    assert [row["step"] for row in log.rows] == [0, 1, 2, 3, 4, 5, 6]
    assert (log.first_step, log.seconds_before) == (4, 1003.0)
    assert all(1003 <= row["seconds"] < 1063 for row in log.rows[4:])
    assert [row["first_step"] for row in log.rows] == [0] * 4 + [4] * 3
    run_training(recipe, run, True, StopBefore(100))
    assert 1003 <= json.loads((run / "summary.json").read_text())["seconds"] < 1063


def test_the_remaining_time_comes_from_the_speed_since_the_resume() -> None:
    state = RunState(small_recipe(), "r", 100, first_step=40, steps_done=60, elapsed_seconds=1020, seconds_before=1000)
    assert state.remaining_seconds == 40 * 20 / 20


def report(run: Path) -> tuple[str, dict[str, Any]]:
    result = CliRunner().invoke(app, [str(run), "--json"])
    assert result.exit_code == 0, result.output
    return result.stderr, json.loads(result.stdout)


def test_a_stopped_run_is_reported_with_the_command_that_continues_it(tmp_path: Path, tiles_folder: Path) -> None:
    run = tmp_path / "a run"
    run_training(quick(tiles_folder), run, False, StopBefore(3))
    printed, figures = report(run)
    assert "stopped at step 3 of 10; until then: healthy so far" in printed
    assert figures["health"]["level"] == "warning"
    command = printed.partition("to continue the run:\n")[2].splitlines()[0]
    assert command == figures["resume_command"]
    (run / "running").write_text("process 7 on a host\n")  # a killed process leaves the file, without its lock
    assert "stopped at step 3 of 10" in report(run)[0]
    path = f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"
    done = subprocess.run(command, shell=True, env=ENVIRONMENT | {"PATH": path}, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    printed, figures = report(run)
    assert "● healthy so far" in printed
    assert "to continue" not in printed
    assert (figures["steps_done"], figures["health"]["level"], figures["resume_command"]) == (10, "healthy", None)


def test_a_run_that_a_process_trains_has_not_stopped(tmp_path: Path, tiles_folder: Path) -> None:
    run = tmp_path / "run"
    run_training(quick(tiles_folder), run, False, StopBefore(3))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(run)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        printed, figures = report(run)
    assert "● healthy so far" in printed
    assert (figures["health"]["level"], figures["resume_command"]) == ("healthy", None)
    assert "stopped at step 3 of 10" in report(run)[0]


@pytest.mark.parametrize(
    ("evaluation", "text"),
    [
        ({}, "no labelled tiles:\nevaluation.train_source, test_source"),
        ({"train_source": "a", "test_source": "b"}, "labelled tiles not evaluated yet"),
        (
            {"train_source": "a", "test_source": "b", "every_epochs": None},
            "not evaluated:\nevaluation.every_epochs=null",
        ),
    ],
)
def test_the_curves_say_why_there_is_no_knn(evaluation: dict[str, Any], text: str, tmp_path: Path) -> None:
    from moco_accel.checkpoints.run_log import RunLog

    assert text in _why_no_knn(RunLog(tmp_path, small_recipe(evaluation=evaluation), [], []))
