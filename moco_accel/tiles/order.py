"""Which tile when, on which process: a function of (seed, epoch, position) alone.

It knows neither loader workers nor files, so that any number of processes and workers, and a resumed run, see the
same tiles in the same steps; each tile once an epoch, none twice, however uneven the shards.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.base import Reading

Place = tuple[int, int]
"""Epoch, and the tile's index in the source."""


def steps_per_epoch(recipe: Recipe, tile_count: int) -> int:
    """Whole global batches in an epoch; the rest of the tiles wait for another epoch's order. Raises UserError."""
    steps = tile_count // recipe.batch.global_batch_size
    if steps == 0:
        unit = recipe.batch.micro_batch_size * recipe.hardware.num_devices
        works = tile_count // unit * unit
        raise UserError(
            f"batch.global_batch_size={recipe.batch.global_batch_size} is more than the {tile_count} tiles in "
            f"data.source={recipe.data.source!r}; "
            + (
                f"batch.global_batch_size={works} works"
                if works
                else f"micro-batches x devices take {unit}: lower them"
            )
        )
    return steps


def epoch_order(seed: int, epoch: int, tile_count: int, reading: Reading | None = None) -> Tensor:
    """The order of all tiles in `epoch`, int64 [tile_count]: drawn from (seed, epoch), local where `reading` asks."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled = torch.randperm(tile_count, generator=generator)
    if reading is None or not reading.units:
        return shuffled
    assert sum(reading.units) == tile_count
    sizes = torch.tensor(reading.units)
    unit_order = torch.randperm(len(sizes), generator=generator)
    lengths = sizes[unit_order]
    begins = lengths.cumsum(0) - lengths  # of each unit in the stream
    starts = (sizes.cumsum(0) - sizes)[unit_order]  # of each unit in the source
    stream = torch.arange(tile_count) + torch.repeat_interleave(starts - begins, lengths)
    window = torch.repeat_interleave(begins // max(reading.window, 1), lengths)
    # shuffled over all, then brought together by window: a stable sort keeps each window's own order drawn
    return stream[shuffled][window[shuffled].argsort(stable=True)]


class MicroBatchPlaces:
    """The places of every micro-batch of one process from `first_step` to the run's end, in the step's order.

    Step s of an epoch takes positions [s·G, (s+1)·G) of its order, G the global batch size; process r takes the
    r-th of `num_devices` equal slices of those.
    """

    def __init__(
        self, recipe: Recipe, tile_count: int, rank: int, first_step: int, reading: Reading | None = None
    ) -> None:
        self._recipe, self._tile_count, self._rank, self._first_step = recipe, tile_count, rank, first_step
        self._steps_per_epoch, self._reading = steps_per_epoch(recipe, tile_count), reading

    def __len__(self) -> int:
        steps = self._steps_per_epoch * self._recipe.schedule.epochs - self._first_step
        return steps * self._recipe.batch.accumulation_steps

    def __iter__(self) -> Iterator[list[Place]]:
        batch = self._recipe.batch
        first_epoch, first_step = divmod(self._first_step, self._steps_per_epoch)
        for epoch in range(first_epoch, self._recipe.schedule.epochs):
            order = epoch_order(self._recipe.run.seed, epoch, self._tile_count, self._reading)
            for step in range(first_step, self._steps_per_epoch):
                start = step * batch.global_batch_size + self._rank * self._recipe.per_device_batch_size
                mine = order[start : start + self._recipe.per_device_batch_size]
                for tiles in mine.split(batch.micro_batch_size):
                    yield [(epoch, tile) for tile in tiles.tolist()]
            first_step = 0
