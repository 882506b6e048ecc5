"""Evaluation in the midst of training: as moco-eval's, on any number of processes, and without a trace in the run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.launches import ENVIRONMENT, ROOT, TRAIN, rows, train, write_labelled
from support.recipes import small_recipe
from typer.testing import CliRunner

from moco_accel.checkpoints.run_folder import best_accuracy, load_encoder
from moco_accel.evaluation.baselines import judge, open_labelled
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


@pytest.fixture(scope="module")
def whole(recipe_file: Path) -> Path:
    run = recipe_file.parent / "whole"
    (run.parent / "said").write_text(train(recipe_file, run, "run.trackers=[tensorboard]"))
    return run


def test_figures_are_those_of_moco_eval(whole: Path) -> None:
    found = evaluations(whole)
    assert [row["step"] for row in found] == [5, 10, 15]
    assert [row["epoch"] for row in found] == [1, 2, 3]
    recipe, encoder, _ = load_encoder(whole)
    expected = judge(recipe, encoder, open_labelled(recipe), "cpu").accuracies
    assert {name: found[-1][name] for name in ("knn_top1", *BASELINES)} == {
        name: expected[name] for name in ("knn_top1", *BASELINES)
    }
    assert len({row[name] for row in found for name in BASELINES[:1]}) == 1
    assert 1 <= found[-1]["rank_me"] <= found[-1]["rank_of"] == 40
    assert all(0 <= row["alignment"] <= 4 and -4 < row["uniformity"] < 0 for row in found)
    assert 0 < found[-1]["time_share"] <= 1


def test_the_best_is_kept_though_it_is_neither_newest_nor_due(whole: Path) -> None:
    found = evaluations(whole)
    best = max(found, key=lambda row: row["knn_top1"])
    name, accuracy = (whole / "best").read_text().split()
    assert name == f"step_{best['step']:08d}"
    assert float(accuracy) == pytest.approx(best["knn_top1"], abs=1e-6)
    assert best_accuracy(whole) == float(accuracy)
    assert (whole / "checkpoints" / name / "manifest.json").exists()


def test_it_leaves_no_trace_in_the_run(whole: Path, recipe_file: Path) -> None:
    """To the bit: BatchNorm's statistics and the random state are as without."""
    bare = recipe_file.parent / "bare"
    train(recipe_file, bare, "evaluation.every_epochs=null")
    assert not (bare / "evaluations.jsonl").exists() or not evaluations(bare)
    last = Path("checkpoints") / "step_00000015"
    for file in ("model.safetensors", "optimizer.safetensors", "random.safetensors"):
        assert (bare / last / file).read_bytes() == (whole / last / file).read_bytes(), file
    assert [row["loss"] for row in rows(bare)] == [row["loss"] for row in rows(whole)]


def test_two_processes_find_what_one_finds(whole: Path, recipe_file: Path) -> None:
    """Features of 61, 35 and 40 tiles, on both in turn; worst difference 2e-6 of what is no count."""
    run = recipe_file.parent / "two"
    train(recipe_file, run, "batch.micro_batch_size=4", "hardware.num_devices=2", processes=2)
    for one, two in zip(evaluations(whole), evaluations(run), strict=True):
        for name in BASELINES:
            assert one[name] == two[name]
        assert two["rank_of"] == one["rank_of"]


def test_a_resumed_run_goes_on_with_its_baselines_and_drops_what_it_does_again(whole: Path, recipe_file: Path) -> None:
    run = recipe_file.parent / "resumed"
    shutil.copytree(whole, run)
    for path in (run / "checkpoints").iterdir():
        if path.name > "step_00000012":
            shutil.rmtree(path)
    before = (run / "baselines.json").stat().st_mtime_ns
    train(recipe_file, run, resume=True)
    assert (run / "baselines.json").stat().st_mtime_ns == before
    kept, again = ([{**row, "seconds": 0, "time_share": 0} for row in evaluations(each)] for each in (whole, run))
    assert again == kept


def test_a_kill_between_the_last_save_and_its_evaluation_loses_neither(whole: Path, recipe_file: Path) -> None:
    run = recipe_file.parent / "killed"
    shutil.copytree(whole, run)
    (run / "summary.json").unlink()
    lines = (run / "evaluations.jsonl").read_text().splitlines()
    (run / "evaluations.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    train(recipe_file, run, resume=True)
    kept, again = ([{**row, "seconds": 0, "time_share": 0} for row in evaluations(each)] for each in (whole, run))
    assert again == kept
    assert (run / "summary.json").exists()


def test_a_small_share_of_time_leaves_the_last_alone(recipe_file: Path) -> None:
    run = recipe_file.parent / "rarely"
    train(recipe_file, run, "evaluation.max_time_share=1e-6", "schedule.epochs=4")
    # the first, for what one costs is not known before, and the last
    assert [row["step"] for row in evaluations(run)] == [5, 20]


def test_a_tracker_gets_every_row(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tracking" / "moco-accel"))
    events.Reload()
    losses = [row["loss"] for row in rows(whole)]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses, rel=1e-6)
    assert [event.step for event in events.Scalars("evaluation/knn_top1")] == [5, 10, 15]


def test_a_tracker_that_is_not_there_is_one_line(recipe_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, TRAIN, "--recipe", str(recipe_file), "--output-dir", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--set", "run.trackers=[tensorboard, trackio]"],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: run.trackers=['tensorboard', 'trackio']: trackio is not installed; pip install trackio, or "
        "run.trackers=['tensorboard'] works"
    )
    assert not (tmp_path / "run").exists()


def test_a_report_shows_and_draws(whole: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, [str(whole), "--svg", str(tmp_path / "report.svg"), "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert (figures["steps_done"], figures["total_steps"]) == (15, 15)
    assert figures["evaluations"] == evaluations(whole)
    assert f"{figures['evaluations'][-1]['knn_top1']:.1%}" in done.stderr
    picture = Image.open(whole / "curves.png")
    assert picture.size == (1650, 880)
    assert len(set(np.asarray(picture.convert("L")).ravel().tolist())) > 50
    assert (tmp_path / "report.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda run: None, "is no run's folder: no recipe.yaml; runs/demo works after make demo"),
        (lambda run: (run / "recipe.yaml").write_text("{}"), "metrics.jsonl holds no step yet"),
        (
            lambda run: [(run / n).write_text("[}") for n in ("recipe.yaml", "metrics.jsonl")],
            "is no log of rows in JSON",
        ),
    ],
)
def test_what_is_no_run_is_one_line(prepare: Any, message: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    done = CliRunner().invoke(cli.app, [str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")
    assert done.stderr.startswith("error: ")
