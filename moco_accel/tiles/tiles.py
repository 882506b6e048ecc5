"""Tiles of any source, at random: `tiles[i]` is [bands, height, width] of the stored type, its bands known by name.

Tiles stay encoded until one is asked for. What is wrong with one tile is that tile's matter (DamagedTile); what is
wrong with the source, or does not fit the recipe, is an error before anything starts (UserError).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import datasets
import torch
from torch import Tensor

from moco_accel.common.console import console
from moco_accel.common.errors import UserError
from moco_accel.images.decoding import DamagedTile
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.base import Reading, Store
from moco_accel.sources.shard_facts import select_statistics
from moco_accel.sources.stores import open_store
from moco_accel.sources.tile_facts import BandStatistics
from moco_accel.tiles.band_selection import BandSelection, choose_bands, stored_names
from moco_accel.tiles.columns import TileColumns, dtype_name, find_columns, pair_column_of, partner_of, read_columns
from moco_accel.tiles.nodata import nodata_of

MIN_SIDE = 8
_TILES_LOOKED_AT = 20  # for a first good one
_REASONS = 3
_MOST_CLASSES = 10_000  # told by numbers or text; more of them are ids


class Tiles:
    """Tiles of one source in its own order; light to send to loader workers.

    `bands` names what a tile yields, in order, or is None where that is not known; `declared_bands` are all names as
    stored, where it is the recipe that says them. `facts` are as stored, in stored order; `statistics` those of the
    bands yielded. `nodata` is stored where there is no data (nodata.py). `reading` says in which units a source is best
    read to train on it.
    """

    def __init__(
        self,
        store: Store,
        source: str,
        columns: TileColumns,
        pair: TileColumns | None,
        first: Tensor,
        bands: BandSelection,
        nodata: float | None,
        reading: Reading,
    ) -> None:
        self.source, self.dtype, self.bands, self.facts = source, first.dtype, bands.names, store.facts
        self._store, self._columns, self._pair, self._select = store, columns, pair, bands.select
        self._stored_bands, self.declared_bands = first.shape[0], bands.declared
        self.nodata, self.reading = nodata, reading

    @property
    def sensor(self) -> str | None:
        return self.facts.sensor if self.facts else None

    @property
    def statistics(self) -> BandStatistics | None:
        """None where other pixels were counted than the recipe calls data."""
        statistics = self.facts.statistics if self.facts and self.facts.nodata == self.nodata else None
        return statistics if statistics is None or self._select is None else select_statistics(statistics, self._select)

    @property
    def image_column(self) -> str | None:
        """None where each band has a column of its own."""
        return None if self._columns.bands else self._columns.names[0]

    @property
    def partner_column(self) -> str | None:
        """What `data.pair_column` may be, told by its name."""
        return partner_of(self._store, self._columns)

    @property
    def column_names(self) -> list[str]:
        return list(self._store.features)

    @property
    def shard_sizes(self) -> list[int]:
        """Tiles in each file of shards; for loose files, one number for all."""
        return self._store.shard_sizes

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> Tensor:
        """Not always contiguous: pictures keep their bands innermost.

        Raises DamagedTile when it can't be read or is not as the others: type, bands, 8 pixels a side, no NaN.
        """
        return self._tile(self._columns, index)

    def pair(self, index: int) -> Tensor:
        """The same place in another season, of `data.pair_column`. Raises DamagedTile."""
        assert self._pair is not None, "data.pair_column was null"
        return self._tile(self._pair, index)

    def column(self, name: str) -> list[Any]:
        """All values of column `name`, as Python objects. Raises UserError when there is none."""
        self._feature(name)
        return self._store.column(name)

    def label_names(self, column: str) -> list[str]:
        """Class names by label number. Raises UserError when `column` holds no class numbers."""
        feature = self._feature(column)
        if isinstance(feature, datasets.ClassLabel):
            return list(feature.names)
        if _is_value(feature, r"u?int\d+"):
            most = max((number for number in self.column(column) if number is not None), default=-1)
            self._check_classes(column, most + 1)
            return [str(number) for number in range(most + 1)]
        raise UserError(
            f"evaluation.label_column={column!r} of {self.source!r} is {feature}, not ClassLabel or integers; "
            f"moco-data build --labels-from-folders writes such a column"
        )

    def labels(self, column: str) -> tuple[list[int | None], list[str]]:
        """Each tile's class number, None (also where -1 is stored) without one; and the classes' names.

        Classes told by text are numbered in its order.
        """
        values = self.column(column)
        if not _is_value(self._feature(column), r"(large_)?string"):
            names = self.label_names(column)
            return [None if value is None or value < 0 else value for value in values], names
        names = sorted({value for value in values if value is not None})
        self._check_classes(column, len(names))
        numbers = {name: number for number, name in enumerate(names)}
        return [numbers.get(value) for value in values], names

    def _check_classes(self, column: str, count: int) -> None:
        if count > _MOST_CLASSES:
            raise UserError(
                f"evaluation.label_column={column!r} of {self.source!r} would have {count:,} classes; a column of at "
                f"most {_MOST_CLASSES:,} is a label"
            )

    def _feature(self, name: str) -> Any:
        if name not in self._store.features:
            raise UserError(f"{self.source!r} has no column {name!r}; its columns: {', '.join(self.column_names)}")
        return self._store.features[name]

    def _tile(self, columns: TileColumns, index: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        index %= len(self)
        try:
            tile = read_columns(self._store, columns, index)
            if self._stored_bands == 3 and _is_eight_bit(tile, 1):
                tile = tile.expand(3, -1, -1)  # a grey JPEG among RGB ones: the same picture, stored smaller
            check_tile(tile, self._stored_bands, self.dtype)
        except DamagedTile as reason:
            raise DamagedTile(f"{reason}: {self._store.where(index)}") from None
        return tile if self._select is None else tile[self._select]


def open_tiles(source: str, data: Data, num_bands: int | None, field: str = "data.source") -> Tiles:
    """Open `source` as `data` says; `field` names the recipe's field in errors.

    `num_bands` is the encoder's; None takes tiles as they are, to look at them. Raises UserError when the source is
    missing, incomplete or damaged, when it is unclear which column holds imagery, or when bands or stored type are not
    what the recipe says: all this before shards are prepared, which may take hours.
    """
    return tiles_in(open_store(source, data, field), source, data, num_bands, field)


def tiles_in(store: Store, source: str, data: Data, num_bands: int | None, field: str) -> Tiles:
    """`open_tiles` of a source whose store is open."""
    pair = pair_column_of(store, data, num_bands, source)
    columns = find_columns(store, data, num_bands, source)
    index, first = _first_good(store, columns, source, field)
    names = list(columns.bands) if columns.bands else stored_names(store, columns, first, index, source, field)
    bands = choose_bands(names, len(first), data, num_bands, source)
    if num_bands is not None and data.scaling == "uint8" and first.dtype != torch.uint8:
        raise UserError(
            f"data.scaling=uint8, but the tiles in {source!r} are {dtype_name(first)}; data.scaling=percentiles works"
            + (", or data.scaling=reflectance for Sentinel-2" if first.dtype == torch.uint16 else "")
        )
    nodata = nodata_of(store, columns, index, first.dtype, data, source)
    store, reading = store.at_random(), Reading()
    if num_bands is not None:
        reading = store.reading([*columns.names, *(pair.names if pair else ())])
        _say_who_reads(store, source, data, field)
    return Tiles(store, source, columns, pair, first, bands, nodata, reading)


def _say_who_reads(store: Store, source: str, data: Data, field: str) -> None:
    """Once, of a training run's tiles that come over a network: each worker has a buffer, and fills it itself."""
    if field == "data.source" and "://" in store.where(0) and os.environ.get("RANK", "0") == "0":
        workers = max(1, data.num_workers)
        console.print(
            f"{source} is fetched anew, all of it, in every epoch and by every loader worker of every process "
            f"(data.num_workers={workers}); a copy on this machine is not",
            soft_wrap=True,
            markup=False,
        )


def check_tile(tile: Tensor, bands: int, dtype: torch.dtype) -> None:
    """Raises DamagedTile when a tile [bands, height, width] is not like the others of its source."""
    if tile.dtype != dtype:
        raise DamagedTile(f"is {dtype_name(tile)}, not {str(dtype).removeprefix('torch.')}")
    if tile.shape[0] != bands:
        raise DamagedTile(f"has {tile.shape[0]} bands, not {bands}")
    if min(tile.shape[1:]) < MIN_SIDE:
        raise DamagedTile(f"has the wrong size ({tile.shape[1]} x {tile.shape[2]} pixels; at least {MIN_SIDE} a side)")
    if tile.is_floating_point() and not torch.isfinite(tile).all():
        raise DamagedTile(f"holds {int((~torch.isfinite(tile)).sum())} values that are NaN or infinite")


def _first_good(store: Store, columns: TileColumns, source: str, field: str) -> tuple[int, Tensor]:
    """What the others are measured by: the first tile that is whole, but one in colour rather than a grey one."""
    reasons: list[str] = []
    good = _good_ones(store, columns, reasons)
    first = next(good, None)
    if first is None:
        raise UserError(
            f"{field}={source!r}: none of its first {len(reasons)} tiles can be read; make them again. "
            f"{'; '.join(reasons[:_REASONS])}" + ("; …" if len(reasons) > _REASONS else "")
        )
    is_picture = columns.bands is None and columns.array_shape is None
    if is_picture and (store.facts is None or len(store.facts.bands) == 3) and _is_eight_bit(first[1], 1):
        return next((other for other in good if _is_eight_bit(other[1], 3)), first)
    return first


def _good_ones(store: Store, columns: TileColumns, reasons: list[str]) -> Iterator[tuple[int, Tensor]]:
    """Of the first few; what is wrong with the others goes to `reasons`."""
    for index in range(min(len(store), _TILES_LOOKED_AT)):
        try:
            tile = read_columns(store, columns, index)
            check_tile(tile, tile.shape[0], tile.dtype)
        except DamagedTile as error:
            reasons.append(f"tile {index} {error}: {store.where(index)}")
        else:
            yield index, tile


def _is_eight_bit(tile: Tensor, bands: int) -> bool:
    return tile.dtype == torch.uint8 and len(tile) == bands


def _is_value(feature: Any, dtype: str) -> bool:
    return isinstance(feature, datasets.Value) and re.fullmatch(dtype, feature.dtype) is not None
