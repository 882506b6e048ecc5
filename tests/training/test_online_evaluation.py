"""Online evaluation equals moco-eval, on any number of ranks, and does not change the run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.evaluation_fixtures import compare_on_fixed_split
from support.recipes import small_recipe
from support.tile_files import write_labelled
from support.trainer_processes import TRAIN, command_line, launch, rows, train
from typer.testing import CliRunner

from moco_accel.checkpoints.best_checkpoint import find_best
from moco_accel.checkpoints.run_folder import load_encoder
from moco_accel.recipe.load import save_recipe
from moco_accel.report import cli

BASELINES = ("knn_top1_random_init", "knn_top1_mean_colour")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, tiles_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_labelled(folder / "train", 61, 0)
    write_labelled(folder / "test", 35, 1)
    recipe = small_recipe(
        encoder={"name": "resnet10", "image_size": 16, "freeze_patch_projection": False},
        schedule={"epochs": 3},
        data={"source": str(tiles_folder), "num_workers": 0},
        batch={"micro_batch_size": 8, "accumulation_steps": 1},
        evaluation={
            "train_source": str(folder / "train"),
            "test_source": str(folder / "test"),
            "neighbours": 5,
            "max_time_share": 1.0,
        },
        run={"log_every_steps": 1, "checkpoint_every_steps": 4},
    )
    save_recipe(recipe, folder / "small.yaml")
    return folder / "small.yaml"


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (run / "evaluations.jsonl").read_text().splitlines()]


def without_times(run: Path) -> list[dict[str, Any]]:
    return [row | {"seconds": 0, "time_share": 0} for row in evaluations(run)]


@pytest.fixture(scope="module")
def evaluated_run(recipe_file: Path) -> Path:
    run = recipe_file.parent / "evaluated"
    train(recipe_file, run, "run.trackers=[tensorboard]")
    return run


def test_figures_equal_those_of_moco_eval(evaluated_run: Path) -> None:
    found = evaluations(evaluated_run)
    assert [row["step"] for row in found] == [5, 10, 15]
    assert [row["epoch"] for row in found] == [1, 2, 3]
    recipe, encoder, _ = load_encoder(evaluated_run)
    expected = compare_on_fixed_split(recipe, encoder).accuracies
    assert {name: found[-1][name] for name in ("knn_top1", *BASELINES)} == {
        name: expected[name] for name in ("knn_top1", *BASELINES)
    }
    assert len({row[name] for row in found for name in BASELINES[:1]}) == 1
    assert 1 <= found[-1]["rank_me"] <= found[-1]["rank_of"] == 40
    assert all(0 <= row["alignment"] <= 4 and -4 < row["uniformity"] < 0 for row in found)
    assert 0 < found[-1]["time_share"] <= 1


def test_best_checkpoint_is_kept(evaluated_run: Path) -> None:
    found = evaluations(evaluated_run)
    best = max(found, key=lambda row: row["knn_top1"])
    name, accuracy = (evaluated_run / "best").read_text().split()
    assert name == f"step_{best['step']:08d}"
    assert float(accuracy) == pytest.approx(best["knn_top1"], abs=1e-6)
    assert find_best(evaluated_run).row["step"] == best["step"]
    assert (evaluated_run / "checkpoints" / name / "manifest.json").exists()


def test_evaluation_does_not_change_the_run(evaluated_run: Path, recipe_file: Path) -> None:
    """All checkpoint files are bit-equal, including BatchNorm's statistics and the random state."""
    plain = recipe_file.parent / "plain"
    train(recipe_file, plain, "evaluation.every_epochs=null")
    assert not (plain / "evaluations.jsonl").exists() or not evaluations(plain)
    last = Path("checkpoints") / "step_00000015"
    for file in ("model.safetensors", "optimizer.safetensors", "random.safetensors"):
        assert (plain / last / file).read_bytes() == (evaluated_run / last / file).read_bytes(), file
    assert [row["loss"] for row in rows(plain)] == [row["loss"] for row in rows(evaluated_run)]


def test_two_ranks_equal_one(evaluated_run: Path, recipe_file: Path) -> None:
    """61, 35 and 40 tiles are shared between ranks."""
    run = recipe_file.parent / "two"
    train(recipe_file, run, "batch.micro_batch_size=4", "hardware.num_devices=2", processes=2)
    for one, two in zip(evaluations(evaluated_run), evaluations(run), strict=True):
        for name in BASELINES:
            assert one[name] == two[name]
        assert two["rank_of"] == one["rank_of"]


def test_resumed_run_keeps_its_baselines_and_repeats_later_rows(evaluated_run: Path, recipe_file: Path) -> None:
    run = recipe_file.parent / "resumed"
    shutil.copytree(evaluated_run, run)
    for path in (run / "checkpoints").iterdir():
        if path.name > "step_00000012":
            shutil.rmtree(path)
    before = (run / "baselines.json").stat().st_mtime_ns
    train(recipe_file, run, resume=True)
    assert (run / "baselines.json").stat().st_mtime_ns == before
    assert without_times(run) == without_times(evaluated_run)


def test_kill_between_the_last_save_and_its_evaluation_loses_neither(evaluated_run: Path, recipe_file: Path) -> None:
    run = recipe_file.parent / "killed"
    shutil.copytree(evaluated_run, run)
    (run / "summary.json").unlink()
    lines = (run / "evaluations.jsonl").read_text().splitlines()
    (run / "evaluations.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    train(recipe_file, run, resume=True)
    assert without_times(run) == without_times(evaluated_run)
    assert (run / "summary.json").exists()


def test_small_time_share_leaves_first_and_last_evaluation(recipe_file: Path) -> None:
    run = recipe_file.parent / "rarely"
    train(recipe_file, run, "evaluation.max_time_share=1e-6", "schedule.epochs=4")
    # the cost is unknown before the first
    assert [row["step"] for row in evaluations(run)] == [5, 20]


def test_tracker_gets_every_row(evaluated_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(evaluated_run / "tracking" / "moco-accel"))
    events.Reload()
    losses = [row["loss"] for row in rows(evaluated_run)]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses, rel=1e-6)
    assert [event.step for event in events.Scalars("evaluation/knn_top1")] == [5, 10, 15]


def test_missing_tracker_is_an_error_in_one_line(recipe_file: Path, tmp_path: Path) -> None:
    arguments = command_line(recipe_file, tmp_path / "run", "run.trackers=[tensorboard, trackio]")
    result = launch([sys.executable, TRAIN], *arguments)
    assert result.returncode == 2
    assert result.stderr.strip() == (
        "error: run.trackers=['tensorboard', 'trackio']: trackio is not installed; pip install trackio, or "
        "run.trackers=['tensorboard'] works"
    )
    assert not (tmp_path / "run").exists()


def test_report_prints_and_draws(evaluated_run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, [str(evaluated_run), "--svg", str(tmp_path / "report.svg"), "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["steps_done"], figures["total_steps"]) == (15, 15)
    assert figures["evaluations"] == evaluations(evaluated_run)
    assert f"{figures['evaluations'][-1]['knn_top1']:.1%}" in result.stderr
    picture = Image.open(evaluated_run / "curves.png")
    assert picture.size == (1650, 880)
    assert len(set(np.asarray(picture.convert("L")).ravel().tolist())) > 50
    assert (tmp_path / "report.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda run: None, "is not a run's folder: no recipe.yaml; runs/demo works after make demo"),
        (lambda run: (run / "recipe.yaml").write_text("{}"), "metrics.jsonl holds no step yet"),
        (
            lambda run: [(run / n).write_text("[}") for n in ("recipe.yaml", "metrics.jsonl")],
            "is not a log of rows in JSON",
        ),
    ],
)
def test_report_of_a_folder_without_a_run_is_an_error(prepare: Any, message: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    result = CliRunner().invoke(cli.app, [str(tmp_path)])
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert result.stderr.startswith("error: ")
