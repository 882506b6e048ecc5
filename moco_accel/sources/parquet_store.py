"""Parquet shards: read in place by row group, here or behind an address; or prepared as an arrow cache."""

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

from moco_accel.common.errors import UserError
from moco_accel.images.decoding import DamagedTile
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.arrow_files import features_of, one_line
from moco_accel.sources.arrow_store import array_row_bytes, prepare_parquet
from moco_accel.sources.base import Reading, Store
from moco_accel.sources.parquet_footers import Footer, check_whole_set, opened, read_footers
from moco_accel.sources.parquet_pages import why_absurd
from moco_accel.sources.shard_facts import facts_of_shards
from moco_accel.sources.tile_facts import TileFacts

_FOOTERS = 8  # per process; one of many row groups takes megabytes
_WINDOW_SHARE = 0.75  # of the buffer, for what a row group takes once it is read is known roughly before
_BUFFER_GROUPS = 4  # advised: windows are then of two row groups at least

Sizes = npt.NDArray[np.float64]


def open_parquet(paths: list[str], source: str, data: Data, field: str) -> Store:
    """Shards at `paths`. Raises UserError when one is damaged, missing from its set, or unlike the others."""
    footers = read_footers(paths, source, field)
    if Path(source).is_dir():  # a glob or a file may well name some shards of a set
        check_whole_set(paths, source, field)
    if sum(sum(footer.group_rows) for footer in footers) == 0:
        raise UserError(f"{field}={source!r} holds shards without tiles; build them anew")
    facts = facts_of_shards(
        [Path(path) for path in paths], [footer.schema.metadata for footer in footers], source, field
    )
    return ParquetStore(paths, footers, data, facts, source, field)


class ParquetStore:
    """Row groups are decoded whole and kept, the last ones used, in at most `buffer_bytes` of every process."""

    def __init__(
        self,
        paths: list[str],
        footers: list[Footer],
        data: Data,
        facts: TileFacts | None,
        source: str,
        field: str,
    ) -> None:
        self._paths, self._source, self._field, self.facts = paths, source, field, facts
        self._buffer_bytes = data.shuffle_buffer_mib << 20
        self._to_prepare = None if data.streaming else footers
        for path, footer in zip(paths, footers, strict=True):
            if data.streaming and not footer.schema.equals(footers[0].schema):
                raise UserError(
                    f"{field}={source!r}: its shards do not go together ({path} and {paths[0]} have other columns); "
                    f"build them anew"
                )
        self.features = features_of(footers[0].schema, source, field)
        self.shard_sizes = [sum(footer.group_rows) for footer in footers]
        self._rows = np.array([rows for footer in footers for rows in footer.group_rows])
        self._ends = self._rows.cumsum()
        self._bytes = np.array([size for footer in footers for size in footer.group_bytes])
        self._first_group = np.cumsum([0, *(len(footer.group_rows) for footer in footers)])  # of each shard
        self._metadata: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._sizes: dict[tuple[str, ...], Sizes] = {}
        self._groups: OrderedDict[tuple[int, tuple[str, ...]], pa.Table] = OrderedDict()
        self._held_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_metadata": OrderedDict(), "_groups": OrderedDict(), "_held_bytes": 0}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def values(self, columns: Sequence[str], index: int) -> list[Any]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        table = self._group(group, tuple(columns))
        row = index - int(self._ends[group - 1] if group else 0)
        if row >= len(table):
            raise DamagedTile(f"lies in a row group of {len(table)} tiles, which says that it has more")
        return [table.column(name)[row] for name in columns]

    def at_random(self) -> Store:
        """These shards as an arrow cache, but when streaming."""
        if self._to_prepare is None:
            return self
        return prepare_parquet(self._paths, self._to_prepare, self.facts, self._source, self._field)

    def column(self, name: str) -> list[Any]:
        values: list[Any] = []
        for path in self._paths:
            try:
                with opened(path) as file:
                    values += file.read(columns=[name]).column(name).to_pylist()
            except (pa.ArrowException, OSError, ValueError) as error:
                raise UserError(
                    f"{self._field}={self._source!r}: column {name!r} of {path} cannot be read ({one_line(error)}); "
                    "build it anew"
                ) from None
        return values

    def where(self, index: int) -> str:
        shard = int(np.searchsorted(np.cumsum(self.shard_sizes), index, side="right"))
        return f"row {index - sum(self.shard_sizes[:shard])} of {self._paths[shard]}"

    def reading(self, columns: Sequence[str]) -> Reading:
        """By row group: a window and the row group that it ends in fit into the buffer, and each is read once.

        Raises UserError when a row group alone is more than the buffer holds.
        """
        sizes = self._group_bytes(tuple(columns))
        largest = float(sizes.max())
        if largest > self._buffer_bytes:
            wanted = math.ceil(_BUFFER_GROUPS * largest / (1 << 20))
            raise UserError(
                f"data.shuffle_buffer_mib={self._buffer_bytes >> 20} is less than a row group of {self._source!r}, of "
                f"{largest / (1 << 20):.1f} MiB; data.shuffle_buffer_mib={wanted} works, or data.streaming=false"
            )
        window = tiles_within(_WINDOW_SHARE * self._buffer_bytes - largest, self._rows, sizes)
        return Reading(self._rows.tolist(), max(window, 1))

    def _group_bytes(self, columns: tuple[str, ...]) -> Sizes:
        """What `columns` of each row group take once they are read."""
        if columns not in self._sizes:
            arrays = {name: array_row_bytes(self.features[name]) for name in columns}
            encoded = [name for name, size in arrays.items() if size is None]
            per_row = sum(size or 0 for size in arrays.values())
            self._sizes[columns] = self._rows * float(per_row) + self._bytes * self._share(encoded)
        return self._sizes[columns]

    def _share(self, columns: Sequence[str]) -> float:
        """Of a row group's bytes, those of `columns`: as in the first that has rows."""
        first = int(np.argmax(self._rows > 0))
        shard = int(np.searchsorted(self._first_group, first, side="right")) - 1
        group = self._footer(shard).row_group(first - int(self._first_group[shard]))
        parts = [group.column(number) for number in range(group.num_columns)]
        sizes = {True: 0, False: 0}
        for part in parts:
            sizes[part.path_in_schema.split(".")[0] in columns] += part.total_uncompressed_size
        return sizes[True] / max(sum(sizes.values()), 1)

    def _group(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        key = (group, columns)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        shard = int(np.searchsorted(self._first_group, group, side="right")) - 1
        number = group - int(self._first_group[shard])
        self._make_room(self._group_bytes(columns)[group])
        if "://" not in self._paths[shard]:
            reason = why_absurd(self._paths[shard], self._footer(shard).row_group(number), columns)
            if reason:
                raise DamagedTile(f"lies in a row group that {reason}")
        # opened for each row group: a reader that stays open keeps the last one's scratch, as large as itself
        try:
            with opened(self._paths[shard], self._footer(shard)) as file:
                table = file.read_row_group(number, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _unreadable(self._paths[shard], error) from None
        self._groups[key] = table
        self._held_bytes += table.nbytes
        return table

    def _make_room(self, wanted: float) -> None:
        """Drop the row groups that were not used for longest, until `wanted` bytes more fit into the buffer."""
        while self._groups and self._held_bytes + wanted > self._buffer_bytes:
            self._held_bytes -= self._groups.popitem(last=False)[1].nbytes

    def _footer(self, shard: int) -> pq.FileMetaData:
        if shard in self._metadata:
            self._metadata.move_to_end(shard)
            return self._metadata[shard]
        with opened(self._paths[shard]) as file:
            self._metadata[shard] = file.metadata
        if len(self._metadata) > _FOOTERS:
            self._metadata.popitem(last=False)
        return self._metadata[shard]


def tiles_within(room: float, rows: npt.NDArray[np.int64], sizes: Sizes) -> int:
    """How many tiles surely fit into `room` bytes, whichever row groups, of `rows` and `sizes`, they are of."""
    filled = rows > 0
    heaviest = np.argsort(-(sizes[filled] / rows[filled]))
    tiles, held = (np.cumsum([0, *values[filled][heaviest]]) for values in (rows, sizes))
    return int(np.interp(room, held, tiles))


def _unreadable(path: str, error: Exception) -> Exception:
    """A file here stays as it is: its tiles are damaged. A network comes back: the run stops, and can be resumed."""
    reason = one_line(error)
    if "://" not in path:
        return DamagedTile(f"lies in a row group that cannot be read ({reason})")
    return UserError(f"data.source: {path} cannot be read ({reason}); --resume goes on once it can")
