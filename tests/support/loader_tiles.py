"""Tiles to load, and the views of a whole run."""

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
from moco_accel.tiles.damage import DamageLog
from moco_accel.training.loader import open_training_tiles, step_views


def write_tiles(folder: Path, tiles: list[bytes], pairs: list[bytes] | None = None, rows_in_shard: int = 100) -> str:
    """Shards of Image columns, in row groups of 4 tiles."""
    folder.mkdir(parents=True)
    columns: dict[str, Any] = {"image": [{"bytes": raw, "path": None} for raw in tiles]}
    if pairs is not None:
        columns["image_pair"] = [{"bytes": raw, "path": None} for raw in pairs]
    everything = datasets.Dataset.from_dict(
        columns, features=datasets.Features(dict.fromkeys(columns, datasets.Image()))
    )
    for number, start in enumerate(range(0, len(tiles), rows_in_shard)):
        shard = everything.select(range(start, min(start + rows_in_shard, len(tiles))))
        shard.to_parquet(folder / f"part-{number}.parquet", batch_size=4)
    return str(folder)


def flat_tiles(count: int, first: int = 0) -> list[bytes]:
    """Tile i is everywhere of value first + i."""
    return [png(np.full((16, 16, 3), first + number, np.uint8)) for number in range(count)]


def all_views(recipe: Recipe, run: Path, rank: int = 0, first_step: int = 0) -> Tensor:
    """[steps, views, micro-batches, …] of pixels."""
    tiles = open_training_tiles(recipe)
    log = DamageLog(recipe, len(tiles), run, resumed=False, first=rank == 0)
    steps = step_views(tiles, recipe, CPU, rank, first_step, log)
    return torch.stack([torch.stack([torch.stack(list(view)) for view in pair]) for pair in steps if pair])


def untouched(**sections: dict[str, Any]) -> Recipe:
    """A recipe whose views of a flat tile show its value: pixel = value / 255, normalised by 0 and 1."""
    augment = {"jitter_probability": 0, "greyscale_probability": 0, "noise_std": 0, "solarize_probability": [0, 0]}
    data = {"mean": [0, 0, 0], "std": [1, 1, 1]} | sections.pop("data", {})
    return small_recipe(augment=augment, data=data, **sections)


def values(views: Tensor) -> list[int]:
    """Which flat tiles, in the order of steps and micro-batches, of view 1."""
    return [round(v) for v in (views[:, 0].mean((-1, -2, -3)) * 255).flatten().tolist()]


CPU = torch.device("cpu")


def png(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()
