"""Read parquet shards by row group, locally or from a URL; or prepare them as an arrow cache."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moco_accel.common.errors import UserError, error_reason
from moco_accel.images.headers import DamagedTile
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.arrow_store import array_row_bytes, prepare_arrow_cache
from moco_accel.sources.arrow_validation import read_features
from moco_accel.sources.base import ReadPattern, Source, Store, read_shards_metadata
from moco_accel.sources.parquet_files import find_page_problem, open_parquet_file, read_footers

_MAX_FOOTERS = 8  # per process; the footer of a shard with many row groups takes megabytes
_WINDOW_SHARE = 0.75  # of the buffer: the size of a decoded row group is only estimated beforehand
_RECOMMENDED_GROUPS = 4  # in the buffer: a window then spans at least two row groups

Sizes = npt.NDArray[np.float64]


class ParquetStore(Store):
    """Rows of parquet shards. Row groups are decoded whole; an LRU buffer of limited bytes keeps them per process.

    Raises:
        UserError: If a shard is damaged or if shards have different columns.
    """

    def __init__(self, paths: list[str], source: Source, data: Data) -> None:
        footers = read_footers(paths, source)
        self.source, self.paths, self.shard_sizes = source, paths, [footer.num_rows for footer in footers]
        if not len(self):
            raise UserError(f"{source} holds shards without tiles; rebuild them")
        schemas = [footer.schema.metadata for footer in footers]
        self.metadata = read_shards_metadata([Path(path) for path in paths], schemas, source)
        self._buffer_bytes = data.shuffle_buffer_mib << 20
        self._to_prepare = None if data.streaming else footers  # shards that are not streamed get an arrow cache
        for path, footer in zip(paths, footers, strict=True):
            if data.streaming and not footer.schema.equals(footers[0].schema):
                raise UserError(f"{source}: its shards have different columns ({paths[0]} and {path}); rebuild them")
        self.features = read_features(footers[0].schema, source)
        self._rows = np.array([rows for footer in footers for rows in footer.group_rows])
        self._ends = self._rows.cumsum()
        self._bytes = np.array([size for footer in footers for size in footer.group_bytes])
        self._first_group = np.cumsum([0, *(len(footer.group_rows) for footer in footers)])  # of each shard
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._sizes: dict[tuple[str, ...], Sizes] = {}
        self._groups: OrderedDict[tuple[int, tuple[str, ...]], pa.Table] = OrderedDict()
        self._held_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_footers": OrderedDict(), "_groups": OrderedDict(), "_held_bytes": 0}

    def values(self, columns: Sequence[str], index: int) -> list[Any]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        table = self._read_group(group, tuple(columns))
        row = index - int(self._ends[group - 1] if group else 0)
        if row >= len(table):
            raise DamagedTile(f"lies in a row group of {len(table)} tiles, whose footer declares more")
        return [table.column(name)[row] for name in columns]

    def column(self, name: str) -> list[Any]:
        values: list[Any] = []
        for path in self.paths:
            try:
                with open_parquet_file(path) as file:
                    values += file.read(columns=[name]).column(name).to_pylist()
            except (pa.ArrowException, OSError, ValueError) as error:
                problem = f"column {name!r} of {path} cannot be read ({error_reason(error)})"
                raise UserError(f"{self.source}: {problem}; rebuild it") from None
        return values

    def prepare_random_access(self) -> Store:
        if self._to_prepare is None:
            return self
        return prepare_arrow_cache(self.paths, self._to_prepare, self.metadata, self.source)

    def read_pattern(self, columns: Sequence[str]) -> ReadPattern:
        """Read by row group: a window and the row group that it ends in fit into the buffer, so each is read once."""
        sizes = self._group_bytes(tuple(columns))
        largest = float(sizes.max())
        if largest > self._buffer_bytes:
            wanted = math.ceil(_RECOMMENDED_GROUPS * largest / (1 << 20))
            raise UserError(
                f"data.shuffle_buffer_mib={self._buffer_bytes >> 20} is less than a row group of {self.source.path!r}, "
                f"of {largest / (1 << 20):.1f} MiB; data.shuffle_buffer_mib={wanted} works, or data.streaming=false"
            )
        window = _count_tiles_within(_WINDOW_SHARE * self._buffer_bytes - largest, self._rows, sizes)
        return ReadPattern(self._rows.tolist(), max(window, 1))

    def _group_bytes(self, columns: tuple[str, ...]) -> Sizes:
        """Estimate the bytes of `columns` of each row group once they are decoded."""
        if columns not in self._sizes:
            arrays = {name: array_row_bytes(self.features[name]) for name in columns}
            encoded = [name for name, size in arrays.items() if size is None]
            per_row = sum(size or 0 for size in arrays.values())
            self._sizes[columns] = self._rows * float(per_row) + self._bytes * self._byte_share(encoded)
        return self._sizes[columns]

    def _byte_share(self, columns: Sequence[str]) -> float:
        """Return the share of `columns` in the bytes of the first row group that has rows."""
        shard, number = self._find_group(int(np.argmax(self._rows > 0)))
        group = self._footer(shard).row_group(number)
        sizes = {True: 0, False: 0}
        for chunk in (group.column(number) for number in range(group.num_columns)):
            sizes[chunk.path_in_schema.split(".")[0] in columns] += chunk.total_uncompressed_size
        return sizes[True] / max(sum(sizes.values()), 1)

    def _find_group(self, group: int) -> tuple[int, int]:
        """Return the shard of a row group, and the row group's number in it."""
        shard = int(np.searchsorted(self._first_group, group, side="right")) - 1
        return shard, group - int(self._first_group[shard])

    def _read_group(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        key = (group, columns)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        shard, number = self._find_group(group)
        path = self.paths[shard]
        wanted = self._group_bytes(columns)[group]
        while self._groups and self._held_bytes + wanted > self._buffer_bytes:
            self._held_bytes -= self._groups.popitem(last=False)[1].nbytes
        if "://" not in path and (problem := find_page_problem(path, self._footer(shard).row_group(number), columns)):
            raise DamagedTile(f"lies in a row group that {problem}")
        # opened for each row group: an open reader keeps scratch memory as large as the last row group
        try:
            with open_parquet_file(path, self._footer(shard)) as file:
                table = file.read_row_group(number, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = error_reason(error)
            if "://" not in path:  # a local file stays damaged: skip its tiles
                raise DamagedTile(f"lies in a row group that cannot be read ({reason})") from None
            # a network recovers, and the run can be resumed
            raise UserError(f"data.source: {path} cannot be read ({reason}); --resume continues once it can") from None
        self._groups[key] = table
        self._held_bytes += table.nbytes
        return table

    def _footer(self, shard: int) -> pq.FileMetaData:
        if shard in self._footers:
            self._footers.move_to_end(shard)
            return self._footers[shard]
        with open_parquet_file(self.paths[shard]) as file:
            self._footers[shard] = file.metadata
        if len(self._footers) > _MAX_FOOTERS:
            self._footers.popitem(last=False)
        return self._footers[shard]


def _count_tiles_within(room: float, rows: npt.NDArray[np.int64], sizes: Sizes) -> int:
    """Return how many tiles fit into `room` bytes for any choice among row groups of `rows` tiles and `sizes` bytes."""
    filled = rows > 0
    heaviest = np.argsort(-(sizes[filled] / rows[filled]))
    tiles, held = (np.cumsum([0, *values[filled][heaviest]]) for values in (rows, sizes))
    return int(np.interp(room, held, tiles))
