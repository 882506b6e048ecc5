"""From shards to the micro-batches of a step: which tile when, on which process, augmented how.

All of it is a function of the recipe, the step's number and the tile's place in the shards, so that it is the same
on any number of processes and loader workers, and after a resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from moco_accel.augment import AugmentedView, Crop, CropBatch, make_crop, stack_crops
from moco_accel.recipe import Recipe
from moco_accel.recipe_text import RecipeError
from moco_accel.shards import Tiles, open_tiles

Place = tuple[int, int]
"""Epoch, and the tile's index in the shards."""


def steps_per_epoch(recipe: Recipe, tile_count: int) -> int:
    """Whole global batches in an epoch; the rest of the tiles wait for another epoch's order. Raises RecipeError."""
    steps = tile_count // recipe.batch.global_batch_size
    if steps == 0:
        unit = recipe.batch.micro_batch_size * recipe.hardware.num_devices
        works = tile_count // unit * unit
        raise RecipeError(
            f"batch.global_batch_size={recipe.batch.global_batch_size} is more than the {tile_count} tiles in "
            f"data.source={recipe.data.source!r}; "
            + (
                f"batch.global_batch_size={works} works"
                if works
                else f"micro-batches x devices take {unit}: lower them"
            )
        )
    return steps


def epoch_order(seed: int, epoch: int, tile_count: int) -> Tensor:
    """The order of all tiles in `epoch`: a permutation drawn from (seed, epoch)."""
    return torch.randperm(tile_count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


class MicroBatchPlaces:
    """The places of every micro-batch of one process from `first_step` to the run's end, in the step's order.

    Step s of an epoch takes positions [s·G, (s+1)·G) of its order, G the global batch size; process r takes the
    r-th of `num_devices` equal slices of those.
    """

    def __init__(self, recipe: Recipe, tile_count: int, rank: int, first_step: int) -> None:
        self._recipe, self._tile_count, self._rank, self._first_step = recipe, tile_count, rank, first_step
        self._steps_per_epoch = steps_per_epoch(recipe, tile_count)

    def __len__(self) -> int:
        steps = self._steps_per_epoch * self._recipe.schedule.epochs - self._first_step
        return steps * self._recipe.batch.accumulation_steps

    def __iter__(self) -> Iterator[list[Place]]:
        batch = self._recipe.batch
        first_epoch, first_step = divmod(self._first_step, self._steps_per_epoch)
        for epoch in range(first_epoch, self._recipe.schedule.epochs):
            order = epoch_order(self._recipe.run.seed, epoch, self._tile_count)
            for step in range(first_step, self._steps_per_epoch):
                start = step * batch.global_batch_size + self._rank * self._recipe.per_device_batch_size
                mine = order[start : start + self._recipe.per_device_batch_size]
                for tiles in mine.split(batch.micro_batch_size):
                    yield [(epoch, tile) for tile in tiles.tolist()]
            first_step = 0


class TwoViews(Dataset[tuple[Crop, Crop]]):
    """Two crops of the tile at a place, before their photometric part."""

    def __init__(self, tiles: Tiles, recipe: Recipe) -> None:
        self._tiles, self._recipe = tiles, recipe

    def __getitem__(self, place: Place) -> tuple[Crop, Crop]:
        epoch, index = place
        tile = self._tiles[index]
        return make_crop(tile, self._recipe, epoch, index, 0), make_crop(tile, self._recipe, epoch, index, 1)


def open_training_tiles(recipe: Recipe) -> Tiles:
    return open_tiles(recipe.data.source, recipe.data.image_column, recipe.encoder.bands)


def step_views(
    tiles: Tiles, recipe: Recipe, device: torch.device, rank: int, first_step: int
) -> Iterator[tuple[AugmentedView, AugmentedView]]:
    """The two views of this process's tiles for every step from `first_step` to the run's end."""
    workers = recipe.data.num_workers
    loader = DataLoader(
        TwoViews(tiles, recipe),
        batch_sampler=MicroBatchPlaces(recipe, len(tiles), rank, first_step),  # type: ignore[arg-type]
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        # enough that the next step's micro-batches are ready when this one ends
        prefetch_factor=max(2, -(-recipe.batch.accumulation_steps // workers)) if workers else None,
    )
    micro_batches = iter(loader)
    while step := list(islice(micro_batches, recipe.batch.accumulation_steps)):
        first, second = zip(*step, strict=True)
        yield AugmentedView(first, recipe, device), AugmentedView(second, recipe, device)


def _collate(pairs: list[tuple[Crop, Crop]]) -> tuple[CropBatch, CropBatch]:
    first, second = zip(*pairs, strict=True)
    return stack_crops(first), stack_crops(second)
