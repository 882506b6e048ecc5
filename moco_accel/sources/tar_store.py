"""Uncompressed tar shards in the webdataset convention, read at random: members up to the first dot are one tile."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import numpy as np
import numpy.typing as npt

from moco_accel.common.errors import UserError
from moco_accel.images.decoding import DamagedTile
from moco_accel.images.headers import MAX_ENCODED_BYTES
from moco_accel.recipe.bands import canonical_band
from moco_accel.sources.base import IMAGES, PackedNames, Reading
from moco_accel.sources.tile_facts import TileFacts, read_facts

_LABELS = ("cls", "json", "txt")  # where a tile's label is looked for, in this order
_BAND = re.compile(r"B\d+A?")
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_MOST_LABEL_BYTES = 1 << 16
_MOST_COLUMNS = 256
_MOST_HEADER_BYTES = 1 << 20  # of a long name, or of what PAX says of a member
_SAME = {"jpeg": "jpg", "tiff": "tif"}
_KEY, _LABEL = "__key__", "label"
_ABSENT = (-1, 0, 0)

Index = npt.NDArray[np.int64]


class TarStore:
    """`index[row, column]` is (shard, offset, size) of a member; the shard is -1 where a tile lacks it.

    Columns are named after what follows the first dot, as `datasets` does, or after the band in it; `label` is what
    .cls, .json or .txt members say.
    """

    def __init__(
        self, files: list[Path], columns: list[str], index: Index, keys: PackedNames, sizes: list[int]
    ) -> None:
        self._paths, self._index, self._keys, self.shard_sizes = [str(file) for file in files], index, keys, sizes
        self._column_numbers = {name: number for number, name in enumerate(columns)}
        self.facts: TileFacts | None = read_facts(files[0].parent)
        self.features: dict[str, Any] = {name: datasets.Value("binary") for name in columns if _is_image(name)}
        self.features[_KEY] = datasets.Value("string")
        labelled = (name for name in _LABELS if name in columns and self._label(0, name) is not None)
        self._label_column = next(labelled, "")
        if self._label_column:
            is_number = isinstance(self._label(0, self._label_column), int)
            self.features[_LABEL] = datasets.Value("int64" if is_number else "string")

    def __len__(self) -> int:
        return len(self._index)

    def values(self, columns: Sequence[str], index: int) -> list[Any]:
        return [self._read(index, name) for name in columns]

    def at_random(self) -> TarStore:
        return self

    def column(self, name: str) -> list[Any]:
        if name == _KEY:
            return [self._keys[index] for index in range(len(self))]
        if name == _LABEL:
            labels = [self._label(index, self._label_column) for index in range(len(self))]
            if self.features[_LABEL].dtype == "string":
                return [None if label is None else str(label) for label in labels]
            return [label if isinstance(label, int) else None for label in labels]
        return [self._read(index, name) for index in range(len(self))]

    def where(self, index: int) -> str:
        shard = next(shard for shard, end in enumerate(accumulate(self.shard_sizes)) if index < end)
        return f"{self._keys[index]} in {self._paths[shard]}"

    def reading(self, columns: Sequence[str]) -> Reading:
        return Reading()

    def _read(self, index: int, column: str) -> bytes | None:
        shard, offset, size = self._index[index, self._column_numbers[column]].tolist()
        if shard < 0:
            return None
        if size > MAX_ENCODED_BYTES:
            raise DamagedTile(f"has {size} bytes; at most {MAX_ENCODED_BYTES} are read")
        # opened for each tile, as a loose file would be: one kept open per shard is more than a process may have
        try:
            with Path(self._paths[shard]).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DamagedTile(f"cannot be read ({error.strerror})") from None

    def _label(self, index: int, column: str) -> int | str | None:
        if self._index[index, self._column_numbers[column], 2] > _MOST_LABEL_BYTES:
            return None
        raw = self._read(index, column)
        if raw is None:
            return None
        text = raw.decode(errors="replace").strip()
        if column != "json":
            return int(text) if _NUMBER.fullmatch(text) else text
        try:
            label = json.loads(text).get(_LABEL)
        except (ValueError, AttributeError, RecursionError):
            return None
        return label if isinstance(label, int | str) else None


def open_tar(files: list[Path], source: str, field: str) -> TarStore:
    """Read the headers of all shards once. Raises UserError when one is compressed, damaged or holds no tiles."""
    members: list[dict[str, dict[str, tuple[int, int, int]]]] = []
    for shard, file in enumerate(files):
        members.append(_members(file, shard, source, field))
    columns = list(dict.fromkeys(column for shard in members for tile in shard.values() for column in tile))
    if len(columns) > _MOST_COLUMNS:
        raise UserError(
            f"{field}={source!r}: its tiles have {len(columns)} kinds of images ({columns[0]}, {columns[1]}, …); one "
            f"per tile works, or one per band, and {_MOST_COLUMNS} are most"
        )
    sizes = [len(shard) for shard in members]
    if not sum(sizes) or not any(map(_is_image, columns)):
        raise UserError(f"{field}={source!r} holds tar shards without images ({', '.join(IMAGES)}); others work")
    rows = [[tile.get(column, _ABSENT) for column in columns] for shard in members for tile in shard.values()]
    keys = PackedNames([key for shard in members for key in shard])
    try:
        return TarStore(files, columns, np.array(rows, np.int64), keys, sizes)
    except ValueError as error:
        raise UserError(f"{field}: {files[0].parent / 'tiles.json'} is damaged ({error}); take it away") from None


def _members(file: Path, shard: int, source: str, field: str) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Place of each member by tile and column, of tiles that have an image."""
    tiles: dict[str, dict[str, tuple[int, int, int]]] = {}
    try:
        with file.open("rb") as opened, tarfile.open(fileobj=_Headers(opened), mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                if member.size < 0 or tar.offset <= member.offset:  # type: ignore[attr-defined] # a size below 0: it would go round in circles
                    raise tarfile.ReadError("a member before its own header")
                tar.members = []  # type: ignore[attr-defined] # it would keep all of them
                folder, slash, name = member.name.rpartition("/")
                stem, _, rest = name.partition(".")
                column = _column(rest.lower())
                if stem and member.isreg() and not member.issparse() and (_is_image(column) or column in _LABELS):
                    tiles.setdefault(folder + slash + stem, {})[column] = (shard, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        hint = f"gunzip < {file} > {file.with_suffix('')}-plain.tar makes one that is" if _is_gzip(file) else str(error)
        raise UserError(f"{field}={source!r}: {file} is not a whole, uncompressed tar ({hint})") from None
    return {key: tile for key, tile in tiles.items() if any(map(_is_image, tile))}


class _Headers:
    """A tar as `tarfile` reads it, but for headers of any length: it would take in all of one at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _column(rest: str) -> str:
    """`tif` of 7.tif, `mask.png` of 7.mask.png, and `B2`, a band's name, of 7.B02.tif."""
    middle, dot, kind = rest.rpartition(".")
    if f".{kind}" in IMAGES and _BAND.fullmatch(canonical_band(middle)):
        return canonical_band(middle)
    return middle + dot + _SAME.get(kind, kind)


def _is_image(column: str) -> bool:
    return f".{column.rpartition('.')[2]}" in IMAGES or _BAND.fullmatch(column) is not None


def _is_gzip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) == b"\x1f\x8b"
