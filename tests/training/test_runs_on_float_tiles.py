"""A run on float tiles with any number for no data can be resumed, exported, reported, verified and previewed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.builds import build, run_moco_data
from support.exported_runs import export_and_compare
from support.geo_files import save_raster
from support.recipes import small_recipe
from support.saved_runs import SavedRun
from support.trainer_processes import rows, train
from typer.testing import CliRunner

from moco_accel.checkpoints.run_folder import load_encoder
from moco_accel.export.trained_encoder import find_trained_encoder
from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.report.cli import app as report
from moco_accel.verify.cli import app as verify
from planner.cli import app as plan

LOWEST = float(np.finfo(np.float32).min)


def use_all(run: Path, out: Path) -> None:
    """Run every command that reads a run's recipe; `moco-report` needs a run that the loop wrote."""
    recipe, _, _ = load_encoder(run)
    assert recipe.data.nodata == LOWEST
    export_and_compare(find_trained_encoder(run, "latest"), out / "timm", "timm")
    stored = json.loads((out / "timm/preprocessing.json").read_text())
    assert stored["nodata"] == LOWEST
    result = CliRunner().invoke(verify, ["--recipe", str(run / "recipe.yaml")])
    assert "of 14 checks" in result.stderr  # so few dimensions start at another loss
    result = run_moco_data("preview", run / "recipe.yaml", out / "views.png")
    assert result.exit_code == 0, result.stderr
    assert (out / "views.png").is_file()


def scene(path: Path) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 120, 120)).astype(np.float32)
    pixels[:, :40] = np.nan
    save_raster(path, pixels)


def test_a_run_that_was_refused_before_is_usable(tmp_path: Path) -> None:
    """Its recipe holds the number that `moco-data build` stores in float tiles."""
    scene(tmp_path / "src/S1.tif")
    build(tmp_path / "src", tmp_path / "tiles", tile_size=32, band_names=["VV", "VH"], max_nodata=0.6)
    measured = {"low": [-2.3, -2.3], "high": [2.3, 2.3], "mean": [0.5, 0.5], "std": [0.2, 0.2]}
    data = {"source": str(tmp_path / "tiles"), "scaling": "percentiles", "nodata": LOWEST, "streaming": True}
    encoder = {"name": "resnet10", "image_size": 32, "bands": 2}
    run = SavedRun(tmp_path / "run", small_recipe(encoder=encoder, data=data | measured))
    run.train(1)
    run.save()
    save_recipe(run.recipe, tmp_path / "run/recipe.yaml")
    use_all(tmp_path / "run", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("built", [True, False], ids=["built", "in place"])
def test_a_run_is_trained_resumed_and_used(tmp_path: Path, built: bool) -> None:
    if built:
        scene(tmp_path / "src/S1.tif")
        build(tmp_path / "src", tmp_path / "tiles", tile_size=32, band_names=["VV", "VH"], max_nodata=0.6)
    else:
        for number in range(9):
            pixels = np.random.default_rng(number).normal(size=(2, 32, 32)).astype(np.float32)
            pixels[:, :4], pixels[:, 4] = LOWEST, np.nan
            save_raster(tmp_path / f"tiles/{number}.tif", pixels, names=["VV", "VH"], nodata=LOWEST)
    recipe = small_recipe(
        encoder={"name": "resnet10", "image_size": 32, "bands": 2},
        data={"source": str(tmp_path / "tiles"), "scaling": "percentiles", "num_workers": 1, "streaming": built},
        batch={"global_batch_size": 4, "micro_batch_size": 4, "accumulation_steps": 1},
        run={"log_every_steps": 1, "checkpoint_every_steps": 2},
    )
    save_recipe(recipe, tmp_path / "r.yaml")
    run = tmp_path / "run"
    train(tmp_path / "r.yaml", run)
    losses = [row["loss"] for row in rows(run)]
    assert np.isfinite(losses).all()
    assert load_recipe(run / "recipe.yaml").data.nodata == LOWEST
    (run / "summary.json").unlink()
    shutil.rmtree(max((run / "checkpoints").iterdir()))
    train(tmp_path / "r.yaml", run, resume=True)
    assert [row["loss"] for row in rows(run)][-2:] == losses[-2:]
    use_all(run, tmp_path)
    reported = CliRunner().invoke(report, [str(run)])
    assert reported.exit_code == 0, reported.stderr
    planned = CliRunner().invoke(plan, ["--recipe", str(run / "recipe.yaml"), "--vram", "8"])
    assert "nodata" not in planned.stderr
