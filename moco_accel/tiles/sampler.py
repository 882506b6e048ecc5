"""Draw the order of tiles: which tile each process reads in each step, as a function of seed, epoch and position.

The order depends on neither loader workers nor files. So any number of processes and workers, and a resumed run, see
the same tiles in the same steps. No tile is drawn twice in an epoch, however uneven the shards are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.base import ReadPattern

EpochTile = tuple[int, int]
"""Epoch, and the tile's index in the source."""


def steps_per_epoch(recipe: Recipe, tile_count: int) -> int:
    """Return the number of complete global batches in an epoch. Each epoch leaves out other tiles.

    Raises:
        UserError: If the tiles do not fill one global batch.
    """
    steps = tile_count // recipe.batch.global_batch_size
    if steps == 0:
        unit = recipe.batch.micro_batch_size * recipe.hardware.num_devices
        works = tile_count // unit * unit
        hint = f"batch.global_batch_size={works} works"
        raise UserError(
            f"batch.global_batch_size={recipe.batch.global_batch_size} is more than the {tile_count} tiles in "
            f"data.source={recipe.data.source!r}; "
            + (hint if works else f"micro-batch size x devices is {unit}: lower one of them")
        )
    return steps


def epoch_order(seed: int, epoch: int, tile_count: int, read_pattern: ReadPattern | None = None) -> Tensor:
    """Return the order of all tiles in `epoch`, int64 [tile_count].

    With units in `read_pattern`, units are shuffled first, and then tiles within each window of units.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled = torch.randperm(tile_count, generator=generator)
    if read_pattern is None or not read_pattern.units:
        return shuffled
    assert sum(read_pattern.units) == tile_count
    sizes = torch.tensor(read_pattern.units)
    unit_order = torch.randperm(len(sizes), generator=generator)
    lengths = sizes[unit_order]
    begins = lengths.cumsum(0) - lengths  # of each unit in the stream
    starts = (sizes.cumsum(0) - sizes)[unit_order]  # of each unit in the source
    stream = torch.arange(tile_count) + torch.repeat_interleave(starts - begins, lengths)
    window = torch.repeat_interleave(begins // max(read_pattern.window, 1), lengths)
    # a stable sort by window keeps the shuffled order within each window
    return stream[shuffled][window[shuffled].argsort(stable=True)]


class MicroBatchSampler:
    """Micro-batches of (epoch, tile) of one process, from `first_step` to the end of the run, in order.

    Step s of an epoch takes positions [s·G, (s+1)·G) of its order, where G is the global batch size. Process r takes
    the r-th of `num_devices` equal slices of those.
    """

    def __init__(
        self, recipe: Recipe, tile_count: int, rank: int, first_step: int, read_pattern: ReadPattern | None = None
    ) -> None:
        self._recipe, self._tile_count, self._rank, self._first_step = recipe, tile_count, rank, first_step
        self._steps_per_epoch, self._read_pattern = steps_per_epoch(recipe, tile_count), read_pattern

    def __len__(self) -> int:
        steps = self._steps_per_epoch * self._recipe.schedule.epochs - self._first_step
        return steps * self._recipe.batch.accumulation_steps

    def __iter__(self) -> Iterator[list[EpochTile]]:
        batch, size = self._recipe.batch, self._recipe.per_device_batch_size
        first_epoch, first_step = divmod(self._first_step, self._steps_per_epoch)
        for epoch in range(first_epoch, self._recipe.schedule.epochs):
            order = epoch_order(self._recipe.run.seed, epoch, self._tile_count, self._read_pattern)
            for step in range(first_step, self._steps_per_epoch):
                start = step * batch.global_batch_size + self._rank * size
                for tiles in order[start : start + size].split(batch.micro_batch_size):
                    yield [(epoch, tile) for tile in tiles.tolist()]
            first_step = 0
