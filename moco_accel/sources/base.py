"""Define what every kind of source offers, and what the kinds share."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from moco_accel.common.errors import UserError
from moco_accel.sources.tile_metadata import METADATA_FILE, TileMetadata, details_path, read_metadata


@dataclass(frozen=True)
class Source:
    """A folder, file, glob, URL or hub id, and the recipe field that names it. Messages begin with its `str`."""

    path: str
    field: str

    def __str__(self) -> str:
        return f"{self.field}={self.path!r}"


@dataclass(frozen=True)
class ReadPattern:
    """How to read a source efficiently. Without units, every tile costs the same to read in any order.

    Attributes:
        units: Tiles in each unit that is read as a whole (a row group of a parquet shard), in stored order.
        window: Tiles that are shuffled at a time; a reader can hold the units of a window.
    """

    units: Sequence[int] = ()
    window: int = 0


class Store(Protocol):
    """Rows of a source, read in any order. Cheap to send to loader workers, which open files again.

    Attributes:
        paths: Shards; a single folder for loose files.
        shard_sizes: Rows in each of `paths`.
        features: Features of `datasets`, by column.
        metadata: None if the source does not describe its tiles.
    """

    source: Source
    paths: Sequence[str]
    shard_sizes: list[int]
    features: dict[str, Any]
    metadata: TileMetadata | None

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def values(self, columns: Sequence[str], index: int) -> list[Any]:
        """Read one row: Arrow scalars or bytes, None for a missing value.

        Raises:
            DamagedTile: If the row cannot be read.
        """

    def column(self, name: str) -> list[Any]:
        """Read all values of a column as Python objects."""

    def missing(self, name: str) -> int:
        """Return how many rows lack a value of a column, where the source's index tells; else 0."""
        return 0

    def location(self, index: int) -> str:
        """Return the file and the row in it, for messages."""
        shard, row = self.place(index)
        return f"row {row} of {self.paths[shard]}"

    def place(self, index: int) -> tuple[int, int]:
        """Return the number of the shard that holds a row, and the row's number in it."""
        ends = list(accumulate(self.shard_sizes))
        shard = bisect_right(ends, index)
        return shard, index - ends[shard] + self.shard_sizes[shard]

    def files(self) -> list[Path]:
        """Return the files that hold the tiles; none for a source that is not on this machine."""
        return [Path(path) for path in self.paths if Path(path).is_file()]

    def digest(self) -> str:
        """Return a checksum of what the source holds: names, sizes and rows of its shards, wherever they lie."""
        files = [Path(path) for path in self.paths]
        sizes = [file.stat().st_size if file.is_file() else 0 for file in files]
        return checksum(f"{f.name} {size} {n}" for f, size, n in zip(files, sizes, self.shard_sizes, strict=True))

    def prepare_random_access(self) -> Store:
        """Return a store that is fast to read in random order.

        Raises:
            UserError: If it cannot be prepared.
        """
        return self

    def read_pattern(self, columns: Sequence[str]) -> ReadPattern:
        """Return how to read `columns` in random order.

        Raises:
            UserError: If the source's units are larger than the shuffle buffer.
        """
        return ReadPattern()


def checksum(lines: Iterable[str]) -> str:
    """Return a short checksum of lines, which may hold names that are not valid UTF-8."""
    found = hashlib.sha256()
    for line in lines:
        found.update(os.fsencode(line + "\n"))
    return found.hexdigest()[:16]


class PackedNames:
    """Many names in one object. A list of a million strings would grow in every forked loader worker."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = pa.array([os.fsencode(name) for name in names], pa.large_binary())

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._names[index].as_py())


def read_folder_metadata(folder: Path, source: Source) -> TileMetadata | None:
    """Read tiles.json in `folder`; None if there is none.

    Raises:
        UserError: If it is damaged.
    """
    try:
        return read_metadata(folder)
    except ValueError as error:
        raise UserError(
            f"{source.field}: {details_path(folder, METADATA_FILE)} is damaged ({error}); remove it"
        ) from None


def read_shards_metadata(
    files: Sequence[Path], schema_metadata: Iterable[Mapping[bytes, bytes] | None], source: Source
) -> TileMetadata | None:
    """Read the one description that all shards share; None if neither folders nor Arrow schemas have one.

    Statistics are kept only if all shards lie in one folder: those of several folders cannot be added up.

    Raises:
        UserError: If a description is damaged, or if shards differ in bands or dtype.
    """
    first: TileMetadata | None = None
    for file, of_schema in zip(files, schema_metadata, strict=True):
        try:
            metadata = read_metadata(file.parent, of_schema)
        except ValueError as error:
            raise UserError(
                f"{source.field}: the tile description of {file} is damaged ({error}); rebuild it"
            ) from None
        if file == files[0]:
            first = metadata
        if _bands(metadata) != _bands(first):
            raise UserError(
                f"{source}: its shards have different bands: {files[0]} has {_bands(first)}, "
                f"{file} has {_bands(metadata)}; name shards with the same bands, e.g. {files[0].parent / '*.parquet'}"
            )
    in_one_folder = len({file.parent for file in files}) == 1
    return first if first is None or in_one_folder else replace(first, statistics=None)


def _bands(metadata: TileMetadata | None) -> str:
    return f"{metadata.dtype} bands [{', '.join(metadata.bands)}]" if metadata else "no band names"
