"""Read uncompressed tar shards of webdataset: all members with the same name up to the first dot are one tile."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.images.headers import MAX_ENCODED_BYTES, DamagedTile
from moco_accel.images.kinds import IMAGE_SUFFIXES
from moco_accel.recipe.bands import NUMBERED_BAND, canonical_band
from moco_accel.sources.base import PackedNames, Source, Store, read_folder_metadata

_LABEL_SUFFIXES = ("cls", "json", "txt")  # in the order in which a label is looked for
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_MAX_LABEL_BYTES = 1 << 16
_MAX_COLUMNS = 256
_MAX_HEADER_BYTES = 1 << 20  # of a long name or a PAX header
_SUFFIX_ALIASES = {"jpeg": "jpg", "tiff": "tif"}
_KEY, _LABEL = "__key__", "label"
_ABSENT = (-1, 0, 0)


class TarStore(Store):
    """Tiles in tar shards, as rows.

    Columns are named after the text that follows the first dot, as `datasets` does, or after the band in it. `label`
    comes from .cls, .json or .txt members.

    Raises:
        UserError: If a shard is compressed or damaged, if there are no tiles, or if tiles.json is damaged.
    """

    def __init__(self, files: list[Path], source: Source) -> None:
        self.source, self.paths = source, [str(file) for file in files]
        shards = [_index_members(file, number, source) for number, file in enumerate(files)]
        columns = list(dict.fromkeys(column for shard in shards for tile in shard.values() for column in tile))
        if len(columns) > _MAX_COLUMNS:
            raise UserError(
                f"{source}: its tiles have {len(columns)} kinds of images ({columns[0]}, {columns[1]}, …); "
                f"one per tile works, or one per band, at most {_MAX_COLUMNS}"
            )
        self.shard_sizes = [len(shard) for shard in shards]
        if not len(self) or not any(map(_is_image, columns)):
            raise UserError(f"{source} holds tar shards without images; shards with {', '.join(IMAGE_SUFFIXES)} work")
        self.metadata = read_folder_metadata(files[0].parent, source)
        rows = [[tile.get(column, _ABSENT) for column in columns] for shard in shards for tile in shard.values()]
        self._index = np.array(rows, np.int64)  # [tiles, columns, 3]: shard, offset and bytes of a member
        self._keys = PackedNames([key for shard in shards for key in shard])
        self._column_numbers = {name: number for number, name in enumerate(columns)}
        self.features: dict[str, Any] = {name: datasets.Value("binary") for name in columns if _is_image(name)}
        self.features[_KEY] = datasets.Value("string")
        labelled = (name for name in _LABEL_SUFFIXES if name in columns and self._label(0, name) is not None)
        self._label_column = next(labelled, "")
        if self._label_column:
            is_integer = isinstance(self._label(0, self._label_column), int)
            self.features[_LABEL] = datasets.Value("int64" if is_integer else "string")

    def values(self, columns: Sequence[str], index: int) -> list[Any]:
        return [self._read(index, name) for name in columns]

    def column(self, name: str) -> list[Any]:
        if name == _KEY:
            return [self._keys[index] for index in range(len(self))]
        if name == _LABEL:
            labels = [self._label(index, self._label_column) for index in range(len(self))]
            if self.features[_LABEL].dtype == "string":
                return [None if label is None else str(label) for label in labels]
            return [label if isinstance(label, int) else None for label in labels]
        return [self._read(index, name) for index in range(len(self))]

    def location(self, index: int) -> str:
        return f"{self._keys[index]} in {self.paths[self._index[index, :, 0].max()]}"

    def _read(self, index: int, column: str) -> bytes | None:
        shard, offset, size = self._index[index, self._column_numbers[column]].tolist()
        if shard < 0:
            return None
        if size > MAX_ENCODED_BYTES:
            raise DamagedTile(f"has {size} bytes; at most {MAX_ENCODED_BYTES} are read")
        # opened for each tile: one open file per shard can exceed the limit of a process
        try:
            with Path(self.paths[shard]).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DamagedTile(f"cannot be read ({error.strerror})") from None

    def _label(self, index: int, column: str) -> int | str | None:
        if self._index[index, self._column_numbers[column], 2] > _MAX_LABEL_BYTES:
            return None
        raw = self._read(index, column)
        if raw is None:
            return None
        text = raw.decode(errors="replace").strip()
        if column != "json":
            return int(text) if _INTEGER.fullmatch(text) else text
        try:
            label = json.loads(text).get(_LABEL)
        except (ValueError, AttributeError, RecursionError):
            return None
        return label if isinstance(label, int | str) else None


def _index_members(file: Path, shard: int, source: Source) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Return (shard, offset, bytes) of the members of each tile that has an image, by tile and column."""
    tiles: dict[str, dict[str, tuple[int, int, int]]] = {}
    try:
        with file.open("rb") as opened, tarfile.open(fileobj=_HeaderReader(opened), mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                if member.size < 0 or tar.offset <= member.offset:  # type: ignore[attr-defined] # would loop forever
                    raise tarfile.ReadError("a member of negative size")
                tar.members = []  # type: ignore[attr-defined] # it would keep all of them
                folder, slash, name = member.name.rpartition("/")
                stem, _, rest = name.partition(".")
                column = _column_name(rest.lower())
                is_wanted = _is_image(column) or column in _LABEL_SUFFIXES
                if stem and is_wanted and member.isreg() and not member.issparse():
                    tiles.setdefault(folder + slash + stem, {})[column] = (shard, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        hint = f"gunzip < {file} > {file.with_suffix('')}-plain.tar makes one" if _is_gzip(file) else str(error)
        raise UserError(f"{source}: {file} is not a complete, uncompressed tar ({hint})") from None
    return {key: tile for key, tile in tiles.items() if any(map(_is_image, tile))}


class _HeaderReader:
    """A tar file for `tarfile`, which would read a header of any length into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _column_name(rest: str) -> str:
    """Return `tif` for 7.tif, `mask.png` for 7.mask.png, and the band `B2` for 7.B02.tif."""
    middle, dot, suffix = rest.rpartition(".")
    if f".{suffix}" in IMAGE_SUFFIXES and NUMBERED_BAND.fullmatch(canonical_band(middle)):
        return canonical_band(middle)
    return middle + dot + _SUFFIX_ALIASES.get(suffix, suffix)


def _is_image(column: str) -> bool:
    return f".{column.rpartition('.')[2]}" in IMAGE_SUFFIXES or NUMBERED_BAND.fullmatch(column) is not None


def _is_gzip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) == b"\x1f\x8b"
