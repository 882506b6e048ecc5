"""From tiles to the two views of a step's micro-batches: read, cropped and counted in loader workers."""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from moco_accel.processes.phases import wait_for_data
from moco_accel.processes.signals import end_with_trainer, ignore_signals
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.damage import Damaged, DamageLog, allowed_damaged, next_good
from moco_accel.tiles.order import MicroBatchPlaces, Place
from moco_accel.tiles.tiles import Tiles, open_tiles
from moco_accel.views.augment import AugmentedView, Crop, CropBatch, make_crop, stack_crops

_NO_TILE = -1


@dataclass(frozen=True)
class TwoCrops:
    """Both views of the tile at a place; None where too many in a row were damaged.

    Of a pair, view 1 is the second season's where `swapped`.
    """

    crops: tuple[Crop, Crop] | None
    damaged: list[Damaged]
    swapped: bool = False


@dataclass(frozen=True)
class MicroBatch:
    """Both views of a micro-batch before their photometric part, and the damaged tiles met on the way."""

    views: tuple[CropBatch, CropBatch] | None
    damaged: list[Damaged]

    def pin_memory(self) -> MicroBatch:
        if self.views is None:
            return self
        return MicroBatch((self.views[0].pin_memory(), self.views[1].pin_memory()), self.damaged)


class TwoViews(Dataset[TwoCrops]):
    """Two crops of the tile at a place: of one tile, or of one place in two seasons."""

    def __init__(self, tiles: Tiles, recipe: Recipe) -> None:
        self._tiles, self._recipe = tiles, recipe
        self._limit = allowed_damaged(recipe, len(tiles))
        # the tile that each worker is at, for the trainer to see when one hangs
        self._at = torch.full((max(recipe.data.num_workers, 1), 2), _NO_TILE)
        if recipe.data.num_workers:
            self._at.share_memory_()

    def reading(self) -> list[tuple[int, int]]:
        """Which process reads which tile, at this moment."""
        return [(process, tile) for process, tile in self._at.tolist() if tile != _NO_TILE]

    def __getitem__(self, place: Place) -> TwoCrops:
        try:
            return self._two_crops(place)
        finally:
            self._set_reading(_NO_TILE)

    def _set_reading(self, index: int) -> None:
        worker = get_worker_info()
        self._at[worker.id if worker else 0] = torch.tensor((os.getpid(), index))

    def _two_crops(self, place: Place) -> TwoCrops:
        epoch, index = place
        sources, damaged = next_good(self._read, index, len(self._tiles), self._limit)
        if sources is None:
            return TwoCrops(None, damaged)
        # which season is view 1 is drawn, for the views are augmented differently
        seed = f"{self._recipe.run.seed}/{epoch}/{index}"
        swapped = self._recipe.data.pair_column is not None and random.Random(seed).random() < 0.5
        ordered = sources[::-1] if swapped else sources
        # drawn for the place, not for the tile that stands in: that one has views of its own
        first, second = (make_crop(tile, self._recipe, epoch, index, view) for view, tile in enumerate(ordered))
        return TwoCrops((first, second), damaged, swapped)

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        self._set_reading(index)
        tile = self._tiles[index]
        return tile, self._tiles.pair(index) if self._recipe.data.pair_column else tile


def open_training_tiles(recipe: Recipe) -> Tiles:
    """The tiles of `data.source`. Raises UserError."""
    return open_tiles(recipe.data.source, recipe.data, recipe.encoder.bands)


def step_views(
    tiles: Tiles, recipe: Recipe, device: torch.device, rank: int, first_step: int, damage: DamageLog
) -> Generator[tuple[AugmentedView, AugmentedView] | None, None, None]:
    """The two views of this process's tiles for every step from `first_step` to the run's end.

    `damage` hears of damaged tiles; None, and then nothing more, where they are too many to go on.
    """
    workers = recipe.data.num_workers
    two_views = TwoViews(tiles, recipe)
    loader = DataLoader(
        two_views,
        batch_sampler=MicroBatchPlaces(recipe, len(tiles), rank, first_step, tiles.reading),  # type: ignore[arg-type]
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_begin_worker,
        generator=torch.Generator().manual_seed(recipe.run.seed),  # else it would draw from the run's random state
        # enough that the next step's micro-batches are ready when this one ends
        prefetch_factor=max(2, -(-recipe.batch.accumulation_steps // workers)) if workers else None,
    )
    micro_batches = _announced(loader, two_views)
    while step := list(islice(micro_batches, recipe.batch.accumulation_steps)):
        for micro_batch in step:
            damage.add(micro_batch.damaged)
        whole = [micro_batch.views for micro_batch in step if micro_batch.views is not None]
        if len(whole) < len(step):
            assert damage.too_many, "so many damaged tiles in a row are more than a run puts up with"
            yield None
            return
        first, second = zip(*whole, strict=True)
        yield AugmentedView(first, recipe, device), AugmentedView(second, recipe, device)


def sample_views(
    tiles: Tiles, recipe: Recipe, device: torch.device, indices: Sequence[int], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Both views of the tiles at `indices`, `size` at a time, augmented as in epoch 0: the same on every call."""
    two_views = TwoViews(tiles, recipe)
    for start in range(0, len(indices), size):
        views = _collate([two_views[0, index] for index in indices[start : start + size]]).views
        if views is None:  # so many damaged tiles in a row that training stops, too
            return
        yield AugmentedView([views[0]], recipe, device)[0], AugmentedView([views[1]], recipe, device)[0]


def _announced(loader: DataLoader[TwoCrops], two_views: TwoViews) -> Iterator[MicroBatch]:
    """All micro-batches; while each is waited for, whoever watches can tell."""
    micro_batches = iter(loader)
    while True:
        wait_for_data(two_views.reading)
        micro_batch = next(micro_batches, None)
        if micro_batch is None:
            return
        assert isinstance(micro_batch, MicroBatch)
        yield micro_batch


def _begin_worker(worker: int) -> None:
    ignore_signals()
    end_with_trainer()


def _collate(pairs: list[TwoCrops]) -> MicroBatch:
    damaged = [tile for pair in pairs for tile in pair.damaged]
    whole = [pair.crops for pair in pairs if pair.crops is not None]
    if len(whole) < len(pairs):
        return MicroBatch(None, damaged)
    first, second = zip(*whole, strict=True)
    return MicroBatch((stack_crops(first), stack_crops(second)), damaged)
