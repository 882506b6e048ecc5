"""Open the tiles of any source, and read them in any order: `tiles[i]` is a tensor [bands, height, width]."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor

from moco_accel.common.console import console
from moco_accel.common.errors import UserError
from moco_accel.images.headers import DamagedTile
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.base import ReadPattern, Store
from moco_accel.sources.open_source import open_store
from moco_accel.sources.tile_metadata import BandStatistics
from moco_accel.tiles.ask_files import ask_files, check_rows, check_scale_tags, describe_pages
from moco_accel.tiles.band_selection import choose_bands
from moco_accel.tiles.find_columns import find_columns, find_pair_column, suggest_pair_column
from moco_accel.tiles.first_tile import find_first_tile, read_band_names
from moco_accel.tiles.read_tile import TileColumns, check_tile, dtype_name, read_tile
from moco_accel.tiles.source_values import choose_alpha, decide_values
from moco_accel.tiles.stored_values import LARGEST_FLOAT

_printed: set[str] = set()
_TYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "int16": torch.int16, "float32": torch.float32}
_MAX_CLASSES = 10_000  # of integers or text; a column with more of them holds ids


class Tiles:
    """Tiles of one source in stored order. They stay encoded until one is read. Cheap to send to loader workers.

    Attributes:
        source: Folder, file, glob, URL or hub id, as the recipe names it.
        shard_sizes: Number of tiles in each shard; one number for all loose files.
        image_column: Column of the images; None if each band has its own column.
        paired_column: Column that by its name holds paired seasons, for `data.pair_column`; None if there is none.
        dtype: Stored type.
        bands: Names of the bands that a tile yields, in order; None if unknown.
        declared_bands: Names of all stored bands, if the recipe declares them.
        metadata: None if the source does not describe its tiles.
        sensor: Key of a known sensor; None if unknown.
        nodata: Value stored where there is no data; None if there is none.

    Raises:
        UserError: As `open_tiles` does.
    """

    def __init__(self, store: Store, data: Data, num_bands: int | None) -> None:
        self.source, self._pair = store.source.path, find_pair_column(store, data, num_bands)
        columns = find_columns(store, data, num_bands)
        self.image_column = None if columns.bands else columns.names[0]
        asked = ask_files(store, columns)
        check_rows(store, columns, asked)
        lines = [*check_scale_tags(store, asked, data.scaling), *describe_pages(store, asked)]
        keep_alpha, about_alpha = choose_alpha(store, columns, asked, data, num_bands)
        first = find_first_tile(store, columns, keep_alpha)
        self._rules, about_values = decide_values(store, columns, asked, data, first.dtype, keep_alpha)
        self.nodata, self.dtype, self._stored_bands = self._rules.nodata, _TYPES[self._rules.dtype], first.bands
        names = list(columns.bands) if columns.bands else read_band_names(store, first, self._rules.dtype)
        bands = choose_bands(names, self._stored_bands, data, num_bands, self.source)
        self.bands, self.declared_bands, self._select = bands.names, bands.declared, bands.select
        if num_bands is not None and data.scaling == "uint8" and self.dtype != torch.uint8:
            raise UserError(
                f"data.scaling=uint8, but the tiles in {self.source!r} are {dtype_name(self.dtype)}; "
                "data.scaling=percentiles works"
                + (", or data.scaling=reflectance for Sentinel-2" if self.dtype == torch.uint16 else "")
            )
        store, self.read_pattern = store.prepare_random_access(), ReadPattern()
        if num_bands is not None:
            self.read_pattern = store.read_pattern([*columns.names, *(self._pair.names if self._pair else ())])
            _announce_downloads(store, data)
        _print_once([*lines, *about_alpha, *about_values])
        self._store, self._columns, self._num_tiles = store, columns, len(store)
        self.shard_sizes, self.column_names, self.metadata = store.shard_sizes, list(store.features), store.metadata
        self.paired_column = suggest_pair_column(store, columns)
        self.sensor = store.metadata.sensor if store.metadata else None

    @property
    def statistics(self) -> BandStatistics | None:
        """Stored statistics of the bands that a tile yields; None also if they are of other nodata or of no float32."""
        statistics = self.metadata.statistics if self.metadata and not self._rules.is_added else None
        percentiles = statistics.percentiles.values() if statistics else ()
        if not all(abs(value) <= LARGEST_FLOAT for values in percentiles for value in values):  # NaN is not, either
            return None
        return statistics if statistics is None or self._select is None else statistics.select(self._select)

    @property
    def is_remote(self) -> bool:
        """Whether the tiles lie on another machine."""
        return "://" in self._store.paths[0]

    @property
    def files(self) -> list[Path]:
        """Files that hold the tiles; none for a source that is not on this machine."""
        return self._store.files()

    @property
    def digest(self) -> str:
        """Checksum of names, sizes and rows of the files, wherever they lie."""
        return self._store.digest()

    def __len__(self) -> int:
        return self._num_tiles

    def __getitem__(self, index: int) -> Tensor:
        """Return a tile [bands, height, width]. Pictures are not contiguous: their bands are innermost.

        Float tiles hold NaN where there is no data, integer tiles `nodata`.

        Raises:
            DamagedTile: If it cannot be read, has another type or number of bands than the first tile, has fewer than 8
                pixels a side, or no pixel with data.
        """
        return self._read(self._columns, index)

    def pair(self, index: int) -> Tensor:
        """Return the tile of the same place in another season, from `data.pair_column`; it can be damaged, too."""
        assert self._pair is not None, "data.pair_column was null"
        return self._read(self._pair, index)

    def column(self, name: str) -> list[Any]:
        """Return all values of a column as Python objects.

        Raises:
            UserError: If there is no such column.
        """
        self._feature(name)
        return self._store.column(name)

    def label_names(self, column: str) -> list[str]:
        """Return the class names by class number.

        Raises:
            UserError: If `column` holds no class numbers.
        """
        feature = self._feature(column)
        if isinstance(feature, datasets.ClassLabel):
            return list(feature.names)
        if _is_value(feature, r"u?int\d+"):
            largest = max((number for number in self.column(column) if number is not None), default=-1)
            self._check_num_classes(column, largest + 1)
            return [str(number) for number in range(largest + 1)]
        raise UserError(
            f"evaluation.label_column={column!r} of {self.source!r} is {feature}, not ClassLabel or integers; "
            f"moco-data build --labels-from-folders writes such a column"
        )

    def labels(self, column: str) -> tuple[list[int | None], list[str]]:
        """Return the class number of each tile, None if it has no value or -1; and the class names.

        Text labels are numbered in sorted order.

        Raises:
            UserError: If `column` holds no classes.
        """
        values = self.column(column)
        if not _is_value(self._feature(column), r"(large_)?string"):
            names = self.label_names(column)
            return [None if value is None or value < 0 else value for value in values], names
        names = sorted({value for value in values if value is not None})
        self._check_num_classes(column, len(names))
        numbers = {name: number for number, name in enumerate(names)}
        return [numbers.get(value) for value in values], names

    def _check_num_classes(self, column: str, count: int) -> None:
        if count > _MAX_CLASSES:
            raise UserError(
                f"evaluation.label_column={column!r} of {self.source!r} has {count:,} classes; a column with at most "
                f"{_MAX_CLASSES:,} works"
            )

    def _feature(self, name: str) -> Any:
        if name not in self._store.features:
            raise UserError(f"{self.source!r} has no column {name!r}; its columns: {', '.join(self.column_names)}")
        return self._store.features[name]

    def _read(self, columns: TileColumns, index: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        index %= len(self)
        try:
            tile = read_tile(self._store, columns, index, self._rules)
            if self._stored_bands == 3 and tile.dtype == torch.uint8 and len(tile) == 1:
                tile = tile.expand(3, -1, -1)  # a picture without colour may be stored as grey
            check_tile(tile, self._stored_bands, self.dtype)
        except DamagedTile as reason:
            raise DamagedTile(f"{reason}: {self._store.location(index)}") from None
        return tile if self._select is None else tile[self._select]


def _is_value(feature: Any, dtype: str) -> bool:
    return isinstance(feature, datasets.Value) and re.fullmatch(dtype, feature.dtype) is not None


def open_tiles(source: str, data: Data, num_bands: int | None, field: str = "data.source") -> Tiles:
    """Open `source` as `data` describes it; errors name the recipe field `field`.

    Everything is checked before an arrow cache is built, which may take hours.

    Args:
        num_bands: `encoder.bands`; None opens tiles as they are, to inspect them.

    Raises:
        UserError: If the source is missing, incomplete or damaged, if it has no image column or several, or if bands
            or stored type do not match `data`.
    """
    return Tiles(open_store(source, data, field), data, num_bands)


def _announce_downloads(store: Store, data: Data) -> None:
    """Print on rank 0 how often training tiles are fetched over a network: each worker fills a buffer of its own."""
    source = store.source
    if source.field == "data.source" and "://" in store.paths[0] and os.environ.get("RANK", "0") == "0":
        workers = max(1, data.num_workers)
        console.print(
            f"every loader worker of every process (data.num_workers={workers}) downloads all of {source.path} in "
            "every epoch; a local copy avoids this",
            soft_wrap=True,
            markup=False,
        )


def _print_once(lines: Sequence[str]) -> None:
    """Print lines on rank 0, each once in a process: a source may be opened several times."""
    for line in lines:
        if line not in _printed and os.environ.get("RANK", "0") == "0":
            _printed.add(line)
            console.print(line, soft_wrap=True, markup=False)
