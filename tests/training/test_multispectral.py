"""Thirteen bands of Sentinel-2 end to end: scene files, shards, a run, a preview, an evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.recipes import small_recipe
from typer.testing import CliRunner

from moco_accel.checkpoints.run_folder import load_encoder
from moco_accel.evaluation.cli import app as eval_app
from moco_accel.imagery.cli import app as data_app
from moco_accel.networks.encoders import build_encoder, patch_projection
from moco_accel.processes.signals import StopRequest
from moco_accel.recipe.bands import SENTINEL2
from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.recipe.schema import Encoder
from moco_accel.training.run import run_training

SCENE = Path(__file__).parents[1] / "fixtures" / "sentinel2"


def cli(app, *arguments: object) -> None:  # type: ignore[no-untyped-def]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build 64 tiles of 32 pixels; two folders serve as labels."""
    folder = tmp_path_factory.mktemp("shards")
    source = folder / "scenes"
    for name in ("north", "south"):
        (source / name).mkdir(parents=True)
        for file in SCENE.glob("s2_*.tif"):
            (source / name / file.name).symlink_to(file)
    arguments = ("--tile-size", 32, "--stride", 16, "--labels-from-folders", "--workers", 1)
    for name in ("tiles", "same_tiles"):
        cli(data_app, "build", source, folder / name, *arguments)
    return folder / "tiles"


def test_train_preview_and_evaluate(shards: Path, tmp_path: Path) -> None:
    recipe = small_recipe(
        encoder={"name": "vit_tiny_patch16", "image_size": 32, "bands": 13},
        batch={"global_batch_size": 16, "micro_batch_size": 8, "accumulation_steps": 2},
        data={"source": str(shards), "scaling": "percentiles", "num_workers": 1},
        evaluation={"train_source": str(shards), "test_source": str(shards.parent / "same_tiles")},
    )
    run = tmp_path / "run"
    run_training(recipe, run, False, StopRequest())
    resolved = load_recipe(run / "recipe.yaml")
    assert resolved.data.bands == list(SENTINEL2)
    assert all(low < high for low, high in zip(*resolved.stored_range, strict=True))
    losses = [json.loads(row)["loss"] for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(loss) and 0.3 < loss / recipe.chance_loss < 2 for loss in losses)

    cli(data_app, "preview", run / "recipe.yaml", tmp_path / "views.png", "--tiles", 2)
    with Image.open(tmp_path / "views.png") as picture:
        colours = picture.getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 1000  # more than those of text

    cli(eval_app, run)
    figures = json.loads((run / "summary.json").read_text())
    # both classes hold the same tiles, so each vote is right for one of two identical tiles
    assert figures["knn_top1"] == figures["knn_top1_random_init"] == 0.5
    assert (run / "neighbours.png").stat().st_size > 10_000
    saved, encoder, _ = load_encoder(run)
    assert saved.data == resolved.data  # how an exported encoder must prepare its input
    assert patch_projection(encoder).weight.shape == (192, 13, 16, 16)


def test_missing_bands_are_refused_by_name(shards: Path, tmp_path: Path) -> None:
    fields = small_recipe(
        encoder={"image_size": 32, "bands": 3},
        data={"source": str(shards), "scaling": "percentiles", "bands": ["B4", "B3", "B16"]},
    )
    save_recipe(fields, tmp_path / "recipe.yaml")
    with pytest.raises(
        ValueError, match=r"data.bands=\[B4, B3, B16\] but '.*' has \[B1, B2, .* B12\]: B16 is not there"
    ):
        run_training(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run", False, StopRequest())


@pytest.mark.parametrize(("name", "fans"), [("vit_tiny_patch16", 16 * 16), ("resnet18", None)])
def test_first_layer_is_initialised_for_its_bands(name: str, fans: int | None) -> None:
    """ViT: uniform within sqrt(6 / (bands · patch² + width)), as MoCo v3; ResNet: by fan-out, as torchvision."""
    torch.manual_seed(0)
    weight = patch_projection(build_encoder(Encoder(name=name, bands=13, image_size=32))).weight.detach()
    assert weight.shape[1] == 13
    if fans:
        bound = math.sqrt(6 / (13 * fans + weight.shape[0]))
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    else:
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 49)), rel=0.02)
