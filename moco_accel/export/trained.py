"""What is exported: a checkpoint's encoder, the recipe it was trained by, and how its pixels are made."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moco_accel.checkpoints.checkpoint import load_encoder_from
from moco_accel.checkpoints.manifest import MANIFEST
from moco_accel.checkpoints.run_folder import find_checkpoint_of
from moco_accel.checkpoints.run_log import EVALUATIONS, read_rows
from moco_accel.common.atomic_files import read_ordinary, strict_json
from moco_accel.common.errors import UserError
from moco_accel.networks.encoders import feature_dim
from moco_accel.recipe.bands import name_bands
from moco_accel.recipe.constants import family
from moco_accel.recipe.schema import Recipe

Which = Literal["latest", "best"]
PREPROCESSING = "preprocessing.json"
_MAX_SUMMARY_BYTES = 1 << 20


@dataclass(frozen=True)
class Trained:
    """`encoder` is the query side's, in eval mode; `figures` are what was measured.

    `are_its_own`: of this very checkpoint, by RUN/evaluations.jsonl; else RUN/summary.json's, of the run.
    """

    recipe: Recipe
    encoder: nn.Module
    step: int
    tile_count: int
    figures: dict[str, Any]
    are_its_own: bool

    @property
    def family(self) -> str:
        return family(self.recipe.encoder.name)

    @property
    def feature_dim(self) -> int:
        return feature_dim(self.recipe.encoder.name)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(bands, height, width) of one tile."""
        config = self.recipe.encoder
        return config.bands, config.image_size, config.image_size

    @property
    def epochs(self) -> float:
        """Done by this checkpoint."""
        return self.step / max(1, self.tile_count // self.recipe.batch.global_batch_size)

    @property
    def vit(self) -> Any:
        """transformers' config of a ViT: its sizes."""
        vit: Any = self.encoder.vit
        return vit.config

    @property
    def blocks(self) -> list[int]:
        """Of a ResNet's four stages."""
        return [len(self.encoder.get_submodule(f"layer{stage}")) for stage in (1, 2, 3, 4)]  # type: ignore[arg-type]


def find_trained(path: Path, which: Which) -> Trained:
    """The encoder of a run, its newest or best checkpoint, or of one checkpoint's folder. Raises UserError."""
    of_best = which == "best" and not (path / MANIFEST).exists()
    checkpoint, run = find_checkpoint_of(_best(path) if of_best else path)
    encoder = load_encoder_from(checkpoint).eval().requires_grad_(False)
    state = checkpoint.state
    return Trained(checkpoint.recipe, encoder, state.step, state.tile_count, *_figures(run, state.step))


def preprocessing(recipe: Recipe) -> dict[str, Any]:
    """From stored values to what the encoder takes: pixel = clip((stored - low) / (high - low), 0, 1)."""
    low, high = recipe.stored_range
    mean, std = recipe.normalisation
    size = recipe.encoder.image_size
    return {
        "made_by": "moco-accel",
        "encoder": recipe.encoder.name,
        "bands": name_bands(recipe.data.bands, recipe.encoder.bands),
        "band_names_known": recipe.data.bands is not None,
        "low": low,
        "high": high,
        "nodata": recipe.data.nodata,
        "nodata_in": "all bands" if recipe.data.scaling == "uint8" else "any band",
        "image_size": size,
        "interpolation": "bilinear, antialiased, of pixels in [0, 1], to image_size x image_size",
        "mean": mean,
        "std": std,
        "steps": [
            "pixel = clip((stored - low) / (high - low), 0, 1), band by band",
            "where all bands, or any band, as nodata_in says, are nodata: pixel = mean, in every band",
            "resize to image_size x image_size",
            "normalised = (pixel - mean) / std, band by band",
        ],
    }


def random_pixels(trained: Trained, count: int = 3) -> Tensor:
    """Normalised pixels, the same each time, to compare two encoders on."""
    return torch.randn(count, *trained.input_shape, generator=torch.Generator().manual_seed(0))


def plain_json(content: Any) -> str:
    """As people read it: a list of numbers in one line."""
    return _IN_LISTS.sub(lambda found: " ".join(found[0].split()), json.dumps(content, indent=2)) + "\n"


_IN_LISTS = re.compile(r"\[[^\[\]{}]*\]")


def _best(run: Path) -> Path:
    """The folder that RUN/best names."""
    try:
        name = read_ordinary(run / "best", 256).decode().split()[0]
    except (OSError, ValueError, IndexError):
        raise UserError(f"--which=best: {run}/best names no checkpoint; --which latest works") from None
    folder = run / "checkpoints" / Path(name).name
    if not (folder / MANIFEST).exists():
        raise UserError(f"--which=best: {run}/best names {name!r}, which is not there; --which latest works")
    return folder


def _figures(run: Path, step: int) -> tuple[dict[str, Any], bool]:
    own = [row for row in read_rows(run / EVALUATIONS) if row.get("step") == step and "knn_top1" in row]
    return (own[-1], True) if own else (_summary(run / "summary.json"), False)


def _summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = strict_json(read_ordinary(path, _MAX_SUMMARY_BYTES), path.name)
    except ValueError as error:
        raise UserError(f"{path}: {error}; move it away, or run moco-eval again") from None
    return found if isinstance(found, dict) else {}
