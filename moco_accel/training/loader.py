"""Load the two views of each step's micro-batches: loader workers read and crop the tiles."""

from __future__ import annotations

import multiprocessing.queues
import os
import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from moco_accel.processes.diagnosis import describe_error
from moco_accel.processes.phases import DATA, enter_phase, progress
from moco_accel.processes.signals import (
    StoppedWhileWaiting,
    die_with_parent,
    ignore_signals,
    kill_workers,
    stoppable_wait,
)
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.damaged_tiles import DamageLog, DamageRecord, max_damaged_tiles, read_or_replace
from moco_accel.tiles.sampler import EpochTile, MicroBatchSampler
from moco_accel.tiles.tiles import Tiles, open_tiles
from moco_accel.training.shared_memory import prefetch_factor
from moco_accel.views.augment import AugmentedView
from moco_accel.views.crops import Crop, CropBatch, make_crop, stack_crops

_NO_TILE = -1


@dataclass(frozen=True)
class CropPair:
    """Both views of a tile, before photometric augmentation, and the damaged tiles that it replaces.

    Attributes:
        crops: None if too many tiles in a row were damaged.
        swapped: True if view 1 shows the second of two paired seasons.
    """

    crops: tuple[Crop, Crop] | None
    damaged: list[DamageRecord]
    swapped: bool = False


class MicroBatch(NamedTuple):  # the DataLoader pins what a tuple holds
    """Both views of a micro-batch, before photometric augmentation; the fields are those of `CropPair`."""

    views: tuple[CropBatch, CropBatch] | None
    damaged: list[DamageRecord]


class TwoViewDataset(Dataset[CropPair]):
    """Two random crops of a tile, or one of each of two paired seasons, indexed by (epoch, tile)."""

    def __init__(self, tiles: Tiles, recipe: Recipe, workers: int = 0) -> None:
        self._tiles, self._recipe = tiles, recipe
        self._max_damaged = max_damaged_tiles(recipe, len(tiles))
        # process id and tile of each worker, in shared memory for the watchdog
        self._current = torch.full((max(workers, 1), 2), _NO_TILE)
        if workers:
            self._current.share_memory_()

    def current_tiles(self) -> list[tuple[int, int]]:
        """Return (process id, tile index) of the tiles that are being read."""
        return [(process, tile) for process, tile in self._current.tolist() if tile != _NO_TILE]

    def __getitem__(self, epoch_tile: EpochTile) -> CropPair:
        try:
            return self._make_crops(epoch_tile)
        finally:
            self._set_current(_NO_TILE)

    def _set_current(self, index: int) -> None:
        worker = get_worker_info()
        self._current[worker.id if worker else 0] = torch.tensor((os.getpid(), index))

    def _make_crops(self, epoch_tile: EpochTile) -> CropPair:
        epoch, index = epoch_tile
        seasons, damaged = read_or_replace(self._read, index, len(self._tiles), self._max_damaged)
        if seasons is None:
            return CropPair(None, damaged)
        # the views are augmented differently, so the season of view 1 is random
        seed = f"{self._recipe.run.seed}/{epoch}/{index}"
        swapped = self._recipe.data.pair_column is not None and random.Random(seed).random() < 0.5
        ordered = seasons[::-1] if swapped else seasons
        # a replacement is cropped with the index of the damaged tile, so that its own views are different ones
        first, second = (make_crop(tile, self._recipe, epoch, index, view) for view, tile in enumerate(ordered))
        return CropPair((first, second), damaged, swapped)

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        self._set_current(index)
        tile = self._tiles[index]
        return tile, self._tiles.pair(index) if self._recipe.data.pair_column else tile


def open_training_tiles(recipe: Recipe) -> Tiles:
    """Open the tiles of `data.source`; raise UserError if they cannot be opened or do not fit the recipe."""
    return open_tiles(recipe.data.source, recipe.data, recipe.encoder.bands)


def step_views(
    tiles: Tiles, recipe: Recipe, device: torch.device, rank: int, first_step: int, damage: DamageLog
) -> Generator[tuple[AugmentedView, AugmentedView] | None, None, None]:
    """Yield the two views of this rank's tiles for every step from `first_step` to the end of the run.

    Damaged tiles are added to `damage`. If they are too many, the last item is None.
    """
    workers = recipe.data.num_workers
    dataset = TwoViewDataset(tiles, recipe, workers)
    loader = DataLoader(
        dataset,
        batch_sampler=MicroBatchSampler(recipe, len(tiles), rank, first_step, tiles.read_pattern),  # type: ignore[arg-type]
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_init_worker,
        generator=torch.Generator().manual_seed(recipe.run.seed),  # keeps the run's random state unchanged
        prefetch_factor=prefetch_factor(recipe),
    )
    micro_batches, in_step = _load(loader, dataset), recipe.batch.accumulation_steps
    for _ in range(len(loader) // in_step):
        views = _views_of_step(list(islice(micro_batches, in_step)), recipe, device, damage)
        yield views
        if views is None:
            return
        del views  # while the next step is loaded, nothing keeps the crops of this one in shared memory


def _views_of_step(
    step: list[MicroBatch], recipe: Recipe, device: torch.device, damage: DamageLog
) -> tuple[AugmentedView, AugmentedView] | None:
    for micro_batch in step:
        damage.add(micro_batch.damaged)
    loaded = [micro_batch.views for micro_batch in step if micro_batch.views is not None]
    if len(loaded) < len(step):
        assert damage.too_many, "a micro-batch without views needs more damaged tiles than are allowed"
        return None
    first, second = zip(*loaded, strict=True)
    return AugmentedView(first, recipe, device), AugmentedView(second, recipe, device)


def sample_views(
    tiles: Tiles, recipe: Recipe, device: torch.device, indices: Sequence[int], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield both views of the tiles at `indices`, `size` at a time, augmented as in epoch 0."""
    dataset = TwoViewDataset(tiles, recipe)
    for start in range(0, len(indices), size):
        views = _collate([dataset[0, index] for index in indices[start : start + size]]).views
        if views is None:  # training will stop because of the damaged tiles, too
            return
        yield AugmentedView([views[0]], recipe, device)[0], AugmentedView([views[1]], recipe, device)[0]


def _load(loader: DataLoader[CropPair], dataset: TwoViewDataset) -> Iterator[MicroBatch]:
    """Yield all micro-batches; the watchdog sees when one is waited for."""
    micro_batches: Iterator[Any] = iter(loader)
    progress.current_tiles = dataset.current_tiles
    for _ in range(len(loader)):
        enter_phase(DATA)
        yield _wait_for_next(micro_batches)


def _wait_for_next(micro_batches: Iterator[MicroBatch]) -> MicroBatch:
    try:
        with stoppable_wait():  # a worker may hang in a read
            return next(micro_batches)
    except StoppedWhileWaiting:
        kill_workers()  # DataLoader would wait five seconds for each
        raise


def _init_worker(worker: int) -> None:
    ignore_signals()
    die_with_parent()
    # multiprocessing would print an error and drop the micro-batch, for which the trainer would wait forever
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_exit_worker)  # type: ignore[attr-defined]


def _exit_worker(error: BaseException, micro_batch: object) -> None:
    os.write(2, f"a loader worker cannot pass on its micro-batch: {describe_error(error)}\n".encode())
    os._exit(1)


def _collate(pairs: list[CropPair]) -> MicroBatch:
    damaged = [tile for pair in pairs for tile in pair.damaged]
    loaded = [pair.crops for pair in pairs if pair.crops is not None]
    if len(loaded) < len(pairs):
        return MicroBatch(None, damaged)
    views = [stack_crops(crops) for crops in zip(*loaded, strict=True)]
    if get_worker_info() is not None:  # here, and not in the queue's thread, a full /dev/shm raises an error
        for view in views:
            view.pixels.share_memory_()
    return MicroBatch((views[0], views[1]), damaged)
