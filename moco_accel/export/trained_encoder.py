"""Load a checkpoint's encoder for export, with its recipe, its metrics and the preprocessing of its pixels."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.markup import escape
from torch import Tensor, nn

from moco_accel.checkpoints.best_checkpoint import find_best
from moco_accel.checkpoints.checkpoint import Checkpoint, load_trained_encoder
from moco_accel.checkpoints.manifest import MANIFEST
from moco_accel.checkpoints.run_folder import find_checkpoint
from moco_accel.checkpoints.run_log import EVALUATIONS, read_rows
from moco_accel.common.atomic_files import parse_strict_json, read_regular_file
from moco_accel.common.console import console
from moco_accel.common.errors import UserError
from moco_accel.networks.encoders import feature_dim
from moco_accel.recipe.bands import band_labels
from moco_accel.recipe.encoder_names import encoder_family
from moco_accel.recipe.schema import Recipe

PREPROCESSING = "preprocessing.json"
_MAX_SUMMARY_BYTES = 1 << 20
_INNERMOST_LISTS = re.compile(r"\[[^\[\]{}]*\]")


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder (query side, eval mode) and its training.

    Attributes:
        tile_count: Tiles of the training set.
        metrics: Results of evaluating this checkpoint (RUN/evaluations.jsonl), or else the run (RUN/summary.json).
    """

    recipe: Recipe
    encoder: nn.Module
    step: int
    tile_count: int
    metrics: dict[str, Any]
    metrics_of_checkpoint: bool

    @property
    def family(self) -> str:
        return encoder_family(self.recipe.encoder.name)

    @property
    def feature_dim(self) -> int:
        return feature_dim(self.recipe.encoder.name)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one tile: (bands, height, width)."""
        config = self.recipe.encoder
        return config.bands, config.image_size, config.image_size

    @property
    def epochs(self) -> float:
        return self.step / max(1, self.tile_count // self.recipe.batch.global_batch_size)

    @property
    def vit_config(self) -> Any:
        """The transformers config of a ViT."""
        vit: Any = self.encoder.vit
        return vit.config

    @property
    def blocks_per_stage(self) -> list[int]:
        """Residual blocks in each of the four stages of a ResNet."""
        return [len(self.encoder.get_submodule(f"layer{stage}")) for stage in (1, 2, 3, 4)]  # type: ignore[arg-type]


def find_trained_encoder(path: Path, which: Literal["latest", "best"]) -> TrainedEncoder:
    """Load the encoder of one checkpoint, or of a run: the newest, or the best.

    Raises:
        UserError: If there is no such checkpoint, or it is damaged.
    """
    use_best = which == "best" and not (path / MANIFEST).exists()
    checkpoint, run = (_find_best(path), path) if use_best else find_checkpoint(path)
    encoder = load_trained_encoder(checkpoint).eval().requires_grad_(False)
    state = checkpoint.state
    rows = [row for row in read_rows(run / EVALUATIONS) if row.get("step") == state.step and "knn_top1" in row]
    metrics = rows[-1] if rows else _summary(run / "summary.json")
    return TrainedEncoder(checkpoint.recipe, encoder, state.step, state.tile_count, metrics, bool(rows))


def preprocessing(recipe: Recipe) -> dict[str, Any]:
    """Return how stored values become the encoder's input: the content of preprocessing.json."""
    low, high = recipe.stored_range
    mean, std = recipe.normalisation
    return {
        "made_by": "moco-accel",
        "encoder": recipe.encoder.name,
        "bands": band_labels(recipe.data.bands, recipe.encoder.bands),
        "band_names_known": recipe.data.bands is not None,
        "low": low,
        "high": high,
        "nodata": recipe.data.nodata,
        "nodata_in": "all bands" if recipe.data.scaling == "uint8" else "any band",
        "image_size": recipe.encoder.image_size,
        "interpolation": "bilinear, antialiased, of pixels in [0, 1], to image_size x image_size",
        "mean": mean,
        "std": std,
        "steps": [
            "pixel = clip((stored - low) / (high - low), 0, 1), band by band",
            "pixel = mean in every band, where all bands or any band (see nodata_in) equal nodata or are not finite",
            "resize to image_size x image_size",
            "normalised = (pixel - mean) / std, band by band",
        ],
    }


def random_pixels(trained: TrainedEncoder, count: int = 3) -> Tensor:
    """Return random normalised pixels [count, bands, height, width], the same at every call."""
    return torch.randn(count, *trained.input_shape, generator=torch.Generator().manual_seed(0))


def format_json(content: Any) -> str:
    """Return indented JSON with each list of numbers on one line."""
    return _INNERMOST_LISTS.sub(lambda found: " ".join(found[0].split()), json.dumps(content, indent=2)) + "\n"


def _find_best(run: Path) -> Checkpoint:
    """Return the best checkpoint of a run, and print which one it is and why."""
    best = find_best(run)
    if best is None:
        newest = find_checkpoint(run)[0].folder.name  # or its own error, if there is none
        raise UserError(f"--which=best: no evaluated checkpoint of {run} is whole; --which latest works, {newest}")
    console.print(escape(f"--which best: {best}"), soft_wrap=True)
    return best.checkpoint


def _summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = parse_strict_json(read_regular_file(path, _MAX_SUMMARY_BYTES), path.name)
    except ValueError as error:
        raise UserError(f"{path}: {error}; move it away, or run moco-eval again") from None
    return found if isinstance(found, dict) else {}
