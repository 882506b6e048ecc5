"""Write small tiles, and collect the views that a run loads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from support.recipes import small_recipe
from torch import Tensor

from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.damaged_tiles import DamageLog
from moco_accel.training.loader import open_training_tiles, step_views


def write_tiles(folder: Path, tiles: list[bytes], pairs: list[bytes] | None = None, rows_in_shard: int = 100) -> str:
    """Write shards with image columns, in row groups of 4 tiles; return the folder."""
    folder.mkdir(parents=True)
    columns: dict[str, Any] = {"image": [{"bytes": raw, "path": None} for raw in tiles]}
    if pairs is not None:
        columns["image_pair"] = [{"bytes": raw, "path": None} for raw in pairs]
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, datasets.Image())))
    for number, start in enumerate(range(0, len(tiles), rows_in_shard)):
        shard = dataset.select(range(start, min(start + rows_in_shard, len(tiles))))
        shard.to_parquet(folder / f"part-{number}.parquet", batch_size=4)
    return str(folder)


def flat_tiles(count: int, first: int = 0) -> list[bytes]:
    """Return PNG tiles; all pixels of tile i are first + i."""
    return [png(np.full((16, 16, 3), first + number, np.uint8)) for number in range(count)]


def all_views(recipe: Recipe, run: Path, rank: int = 0, first_step: int = 0) -> Tensor:
    """Return the pixels of all steps [steps, views, micro-batches, tiles, bands, size, size]."""
    tiles = open_training_tiles(recipe)
    log = DamageLog(recipe, len(tiles), run, resumed=False, first=rank == 0)
    steps = step_views(tiles, recipe, CPU, rank, first_step, log)
    return torch.stack([torch.stack([torch.stack(list(view)) for view in pair]) for pair in steps if pair])


def plain_recipe(**sections: dict[str, Any]) -> Recipe:
    """Return a recipe without photometric augmentation, so that pixels of a flat tile are value / 255."""
    augment = {"jitter_probability": 0, "greyscale_probability": 0, "noise_std": 0, "solarize_probability": [0, 0]}
    data = {"mean": [0, 0, 0], "std": [1, 1, 1]} | sections.pop("data", {})
    return small_recipe(augment=augment, data=data, **sections)


def flat_values(views: Tensor) -> list[int]:
    """Return the values of flat tiles in view 1, in the order of steps and micro-batches."""
    return [round(v) for v in (views[:, 0].mean((-1, -2, -3)) * 255).flatten().tolist()]


CPU = torch.device("cpu")


def png(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()
