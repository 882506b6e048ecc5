"""Read uncompressed tar shards of webdataset: all members with the same name up to the first dot are one tile.

Where names have dots of their own (ortho_0.5m_000.png), that would make a column of each file; members are then grouped
by the name up to the last dot.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from moco_accel.common.console import print_note
from moco_accel.common.errors import UserError
from moco_accel.images.headers import MAX_ENCODED_BYTES, DamagedTile
from moco_accel.images.kinds import IMAGE_SUFFIXES
from moco_accel.images.tar_members import TarMember, list_tar_members
from moco_accel.recipe.bands import NUMBERED_BAND, canonical_band
from moco_accel.sources.base import PackedNames, Source, Store, read_folder_metadata

_LABEL_SUFFIXES = ("cls", "json", "txt")  # in the order in which a label is looked for
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_MAX_LABEL_BYTES = 1 << 16
_MAX_COLUMNS, _MAX_NAMED = 256, 5
_SUFFIX_ALIASES = {"jpeg": "jpg", "tiff": "tif"}
_KEY, _LABEL = "__key__", "label"
_MIXED = "image"  # column of images of several formats
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
        members = [_list_members(file, source) for file in files]
        shards = _group_members(members)
        _log_passed_over(members, shards, source)
        _merge_formats(shards)
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

    def missing(self, name: str) -> int:
        return int((self._index[:, self._column_numbers[name], 0] < 0).sum())

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


def _list_members(file: Path, source: Source) -> list[TarMember]:
    try:
        return list_tar_members(file)
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        hint = f"gunzip < {file} > {file.with_suffix('')}-plain.tar makes one" if _is_gzip(file) else str(error)
        raise UserError(f"{source}: {file} is not a complete, uncompressed tar ({hint})") from None


_Tile = dict[str, tuple[int, int, int]]
"""Shard, offset and bytes of a tile's members, by column."""


def _group_members(shards: Sequence[Sequence[TarMember]]) -> list[dict[str, _Tile]]:
    """Return the tiles of each shard by key; those of the last dot where the first dot makes no shared columns."""
    by_first = [_tiles_of(number, members, _split_at_first_dot) for number, members in enumerate(shards)]
    if _has_shared_columns(by_first):
        return by_first
    by_last = [_tiles_of(number, members, _split_at_last_dot) for number, members in enumerate(shards)]
    return by_last if _has_shared_columns(by_last) else by_first


def _has_shared_columns(shards: Sequence[dict[str, _Tile]]) -> bool:
    """Check that most tiles have each of the columns of images, but for other formats of one image."""
    tiles = [tile for shard in shards for tile in shard.values()]
    counts = Counter(column for tile in tiles for column in tile if _is_image(column))
    alike = Counter(re.sub(r"\d+", "0", column) for column in counts)  # 5m_000.png and 5m_001.png are numbered tiles
    is_odd = [
        "." in column and (2 * count <= len(tiles) or (len(tiles) == 1 and alike[re.sub(r"\d+", "0", column)] > 1))
        for column, count in counts.items()
    ]
    odd = sum(count for count, odd in zip(counts.values(), is_odd, strict=True) if odd)
    return 2 * odd <= sum(counts.values())


def _merge_formats(shards: Sequence[dict[str, _Tile]]) -> None:
    """Give images of several formats (0.png, 1.jpg) one column, if every tile has one image."""
    images = [[column for column in tile if _is_image(column)] for shard in shards for tile in shard.values()]
    if len({columns[0] for columns in images}) < 2 or any(len(x) > 1 or "." in x[0] for x in images):
        return
    if any(NUMBERED_BAND.fullmatch(columns[0]) for columns in images):
        return
    for tile in (tile for shard in shards for tile in shard.values()):
        column = next(filter(_is_image, tile))
        tile[_MIXED] = tile.pop(column)


def _tiles_of(shard: int, members: Sequence[TarMember], split: Callable[[str], tuple[str, str]]) -> dict[str, _Tile]:
    """Return the tiles that have an image, by key."""
    tiles: dict[str, _Tile] = {}
    for member in members:
        stem, rest = split(member.name)
        column = _column_name(rest.lower())
        if stem and (_is_image(column) or column in _LABEL_SUFFIXES):
            tiles.setdefault(member.folder + stem, {})[column] = (shard, member.offset, member.size)
    return {key: tile for key, tile in tiles.items() if any(map(_is_image, tile))}


def _split_at_first_dot(name: str) -> tuple[str, str]:
    stem, _, rest = name.partition(".")
    return stem, rest


def _split_at_last_dot(name: str) -> tuple[str, str]:
    """Split a name at its last dot; the band before it stays with the suffix."""
    stem, _, rest = name.rpartition(".")
    above, _, band = stem.rpartition(".")
    is_band = above and NUMBERED_BAND.fullmatch(canonical_band(band)) is not None
    return (above, f"{band}.{rest}") if is_band else (stem, rest)


def _log_passed_over(
    members: Sequence[Sequence[TarMember]], shards: Sequence[dict[str, _Tile]], source: Source
) -> None:
    """Log how many members of each ending belong to no tile: no images, no labels."""
    counts: Counter[str] = Counter()
    example = ""
    for listed, tiles in zip(members, shards, strict=True):
        read = {offset for tile in tiles.values() for _, offset, _ in tile.values()}
        for member in listed:
            if member.offset not in read:
                counts[_ending(member.name)] += 1
                example = example or member.folder + member.name
    if counts:
        endings = ", ".join(f"{count:,} {ending}" for ending, count in counts.most_common(_MAX_NAMED))
        more = f" and {len(counts) - _MAX_NAMED} other endings" if len(counts) > _MAX_NAMED else ""
        print_note(f"{source}: members that are no tile and no label are left out: {endings}{more}; e.g. {example}")


def _ending(name: str) -> str:
    _, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if dot else "without an ending"


def _column_name(rest: str) -> str:
    """Return `tif` for 7.tif, `mask.png` for 7.mask.png, and the band `B2` for 7.B02.tif."""
    middle, dot, suffix = rest.rpartition(".")
    if f".{suffix}" in IMAGE_SUFFIXES and NUMBERED_BAND.fullmatch(canonical_band(middle)):
        return canonical_band(middle)
    return middle + dot + _SUFFIX_ALIASES.get(suffix, suffix)


def _is_image(column: str) -> bool:
    is_file = f".{column.rpartition('.')[2]}" in IMAGE_SUFFIXES
    return is_file or column == _MIXED or NUMBERED_BAND.fullmatch(column) is not None


def _is_gzip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) == b"\x1f\x8b"
