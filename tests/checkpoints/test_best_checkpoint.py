"""RUN/best names the best checkpoint that is there, also after a run went back, and moco-export takes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.interruptions import StopBefore
from support.recipes import small_recipe
from support.saved_runs import SMALL, SavedRun
from support.tile_files import write_labelled
from typer.testing import CliRunner

from moco_accel.checkpoints.best_checkpoint import find_best, is_new_best, refresh_best
from moco_accel.checkpoints.run_folder import mark_best
from moco_accel.checkpoints.run_log import read_rows
from moco_accel.export.cli import app as export_app
from moco_accel.recipe.schema import Recipe
from moco_accel.training.run import run_training

BASELINES = {"knn_top1_random_init": 0.25, "knn_top1_mean_colour": 0.5}


def evaluated(step: int, accuracy: float, tiles: str | None = "a", **more: float) -> dict[str, Any]:
    of = {} if tiles is None else {"evaluation_set": tiles}
    return {"step": step, "epoch": step, "knn_top1": accuracy, **BASELINES, **of, **more}


def write_rows(run: Path, *rows: dict[str, Any]) -> None:
    (run / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def best_step(run: Path) -> int | None:
    found = find_best(run)
    return found.row["step"] if found else None


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with checkpoints after steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("three") / "run"
    run = SavedRun(folder, SMALL.model_copy(update={"run": SMALL.run.model_copy(update={"keep_checkpoints": 3})}))
    for _ in range(3):
        run.train(2)
        run.save()
    return folder


@pytest.fixture
def run(three_checkpoints: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three_checkpoints, tmp_path / "run"))


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([evaluated(2, 0.5), evaluated(4, 0.7), evaluated(6, 0.6)], 4),
        ([evaluated(2, 0.5), evaluated(4, 0.7), evaluated(5, 0.9), evaluated(6, 0.6)], 4),  # that of 5 is not there
        ([evaluated(2, 0.1), evaluated(4, 1 / 3), evaluated(6, 1 / 3 + 1e-12)], 4),  # a tie, but for rounding
        ([evaluated(2, 0.9, "b"), evaluated(4, 0.5), evaluated(6, 0.6)], 6),  # other labelled tiles
        ([evaluated(2, 0.9, None), evaluated(4, 0.5), evaluated(6, 0.6)], 2),  # an older row, of equal baselines
        ([evaluated(2, 0.9, None, knn_top1_mean_colour=0.1), evaluated(4, 0.6), evaluated(6, 0.5)], 4),
        ([evaluated(2, 0.9), {"step": 6, "epoch": 6, "rank_me": 3.0}], 2),  # the last row has no accuracy
        ([evaluated(1, 0.9)], None),
        ([], None),
    ],
)
def test_the_best_row_whose_checkpoint_is_there(rows: list[dict[str, Any]], best: int | None, run: Path) -> None:
    write_rows(run, *rows)
    assert best_step(run) == best


def test_without_rows_the_pointer_decides(run: Path) -> None:
    mark_best(run, run / "checkpoints/step_00000004", 0.5)
    assert best_step(run) == 4
    shutil.rmtree(run / "checkpoints/step_00000004")
    assert best_step(run) is None


def test_a_damaged_best_checkpoint_is_passed_over(run: Path) -> None:
    write_rows(run, evaluated(2, 0.9), evaluated(4, 0.7), evaluated(5, 0.8), evaluated(6, 0.6))
    model = run / "checkpoints/step_00000002/model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    assert str(find_best(run)).startswith(
        "step_00000004, kNN 70.0% after epoch 4, the best of 4 evaluations; 2 better without a whole checkpoint, e.g. "
        "step_00000002 with 90.0%, which is damaged: model.safetensors "
    )


def test_a_pointer_to_what_is_gone_is_corrected_or_removed(run: Path) -> None:
    logged: list[str] = []
    write_rows(run, evaluated(2, 0.5), evaluated(4, 0.7), evaluated(6, 0.6))
    (run / "best").write_text("step_00000004 0.700000\n")
    refresh_best(run, logged.append)
    assert logged == []
    shutil.move(run / "checkpoints/step_00000004", run / "away")
    refresh_best(run, logged.append)
    assert (run / "best").read_text() == "step_00000006 0.600000\n"
    assert f"{run}/best names step_00000006, kNN 60.0% after epoch 6, the best of 3 evaluations; 1 better" in logged[0]
    assert "before, it named step_00000004" in logged[0]
    shutil.rmtree(run / "checkpoints")
    refresh_best(run, logged.append)
    assert not (run / "best").exists()
    assert "named step_00000006, and no evaluated checkpoint is left: it is removed" in logged[1]


def test_a_new_best_beats_the_others_of_its_labelled_tiles(run: Path) -> None:
    logged: list[str] = []
    rows = [evaluated(2, 0.5), evaluated(4, 0.7), evaluated(5, 0.9)]  # the checkpoint of step 5 is gone
    for accuracy, tiles, is_best in ((0.7, "a", False), (0.7 + 1e-12, "a", False), (0.71, "a", True), (0.1, "b", True)):
        row = evaluated(6, accuracy, tiles)
        write_rows(run, *rows, row)
        assert is_new_best(run, row, logged.append) == is_best, row
    assert logged == ["the labelled tiles or the kNN settings have changed: RUN/best compares evaluations from here on"]


def quick(folder: Path, **evaluation: Any) -> Recipe:
    """Return a recipe of 2 epochs of 3 steps, each saved, evaluated after each epoch."""
    if not (folder / "train").exists():
        write_labelled(folder / "train", 24, 0)
        write_labelled(folder / "test", 24, 1)
    sides = {f"{side}_source": str(folder / side) for side in ("train", "test")}
    return small_recipe(
        encoder={"name": "resnet10", "image_size": 16, "freeze_patch_projection": False},
        batch={"micro_batch_size": 8, "accumulation_steps": 1},
        schedule={"epochs": 2},
        data={"source": str(folder / "train")},
        evaluation=sides | {"max_time_share": 1.0, "neighbours": 5} | evaluation,
        run={"log_every_steps": 1, "checkpoint_every_steps": 1, "keep_checkpoints": 9},
    )


def pretend_accuracy(run: Path, step: int, accuracy: float) -> None:
    rows = read_rows(run / "evaluations.jsonl")
    write_rows(run, *(row | ({"knn_top1": accuracy} if row["step"] == step else {}) for row in rows))


def train(recipe: Recipe, run: Path, stop_before: int = 1000) -> None:
    run_training(recipe, run, True, StopBefore(stop_before))


def test_a_finished_run_that_goes_back_has_a_best_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of 6 steps is best at 3; all newer than 2 are moved away, and the run resumes."""
    run, recipe = tmp_path / "run", quick(tmp_path)
    train(recipe, run)
    pretend_accuracy(run, 3, 1.0)
    mark_best(run, run / "checkpoints/step_00000003", 1.0)
    for path in sorted((run / "checkpoints").iterdir())[2:]:
        shutil.move(path, tmp_path)
    capsys.readouterr()
    train(recipe, run, 0)  # stops at once
    assert not (run / "best").exists()
    assert not (run / "summary.json").exists()
    printed = capsys.readouterr().err
    assert "best named step_00000003, and no evaluated checkpoint is left: it is removed" in printed
    assert "summary.json is removed: it described later steps" in printed
    train(recipe, run)
    rows = read_rows(run / "evaluations.jsonl")
    highest = max(rows, key=lambda row: (row["knn_top1"], -row["step"]))
    name, accuracy = (run / "best").read_text().split()
    assert (int(name[-8:]), float(accuracy)) == (highest["step"], pytest.approx(highest["knn_top1"], abs=1e-6))
    result = CliRunner().invoke(
        export_app, [str(run), str(tmp_path / "out"), "--format", "torchvision", "--which", "best"]
    )
    assert result.exit_code == 0, result.stderr
    assert f"--which best: {name}, kNN {highest['knn_top1']:.1%} after epoch {highest['epoch']:g}" in result.stderr


def test_other_labelled_tiles_start_a_new_best_and_moved_ones_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(quick(tmp_path), run, 4)
    first = (run / "best").read_text().split()[0]
    pretend_accuracy(run, int(first[-8:]), 2.0)  # nothing can be better
    shutil.copytree(run, tmp_path / "moved")
    shutil.copytree(tmp_path / "test", tmp_path / "elsewhere")
    capsys.readouterr()
    train(quick(tmp_path, test_source=f"{tmp_path}/elsewhere/"), tmp_path / "moved")
    assert (tmp_path / "moved/best").read_text().split()[0] == first
    assert "have changed" not in capsys.readouterr().err
    train(quick(tmp_path, neighbours=4), run)
    assert (run / "best").read_text().split()[0] == f"step_{read_rows(run / 'evaluations.jsonl')[-1]['step']:08d}"
    printed = capsys.readouterr().err
    assert printed.count("the labelled tiles or the kNN settings have changed: RUN/best compares evaluations from") == 1
