"""List the files in an uncompressed tar, with the place of their bytes, and group them into tiles by their names.

As in webdataset, members with the same name up to the first dot are one tile, and the rest of the name is a column.
Where names have dots of their own (ortho_0.5m_000.png), that would make a column of each file; members are then grouped
by the name up to the last dot.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from moco_accel.images.band_files import band_of, is_band_name
from moco_accel.images.kinds import IMAGE_SUFFIXES, is_hidden_name

LABEL_SUFFIXES = ("cls", "json", "txt")  # in the order in which a label is looked for
MIXED_FORMATS = "image"  # column of images of several formats
_SUFFIX_ALIASES = {"jpeg": "jpg", "tiff": "tif"}

_MAX_HEADER_BYTES = 1 << 20  # of a long name or a PAX header


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a tar.

    Attributes:
        folder: Folders in its name, with the last slash.
        name: Name without folders.
        offset: Place of its bytes in the tar.
        size: Their number.
    """

    folder: str
    name: str
    offset: int
    size: int


def list_tar_members(file: Path) -> list[TarMember]:
    """Return the regular files in a tar that are not hidden.

    Raises:
        tarfile.TarError: If it is compressed or damaged; also OSError, ValueError, OverflowError and RecursionError.
    """
    members = []
    with file.open("rb") as opened, tarfile.open(fileobj=_HeaderReader(opened), mode="r:") as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            if member.size < 0 or tar.offset <= member.offset:  # type: ignore[attr-defined] # would loop forever
                raise tarfile.ReadError("a member of negative size")
            tar.members = []  # type: ignore[attr-defined] # it would keep all of them
            folder, slash, name = member.name.rpartition("/")
            if member.isreg() and not member.issparse() and not is_hidden_name(member.name):
                members.append(TarMember(folder + slash, name, member.offset_data, member.size))
    return members


class _HeaderReader:
    """A tar file for `tarfile`, which would read a header of any length into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


Tile = dict[str, tuple[int, int, int]]
"""Shard, offset and bytes of a tile's members, by column."""


def group_members(shards: Sequence[Sequence[TarMember]]) -> list[dict[str, Tile]]:
    """Return the tiles of each shard by key; those of the last dot where the first dot makes no shared columns."""
    by_first = [_tiles_of(number, members, _split_at_first_dot) for number, members in enumerate(shards)]
    if _has_shared_columns(by_first):
        return by_first
    by_last = [_tiles_of(number, members, _split_at_last_dot) for number, members in enumerate(shards)]
    return by_last if _has_shared_columns(by_last) else by_first


def _has_shared_columns(shards: Sequence[dict[str, Tile]]) -> bool:
    """Check that most tiles have each of the columns of images, but for other formats of one image."""
    tiles = [tile for shard in shards for tile in shard.values()]
    counts = Counter(column for tile in tiles for column in tile if is_image_column(column))
    alike = Counter(re.sub(r"\d+", "0", column) for column in counts)  # 5m_000.png and 5m_001.png are numbered tiles
    is_odd = [
        "." in column and (2 * count <= len(tiles) or (len(tiles) == 1 and alike[re.sub(r"\d+", "0", column)] > 1))
        for column, count in counts.items()
    ]
    odd = sum(count for count, odd in zip(counts.values(), is_odd, strict=True) if odd)
    return 2 * odd <= sum(counts.values())


def _tiles_of(shard: int, members: Sequence[TarMember], split: Callable[[str], tuple[str, str]]) -> dict[str, Tile]:
    """Return the tiles that have an image, by key."""
    tiles: dict[str, Tile] = {}
    for member in members:
        stem, rest = split(member.name)
        column = _column_name(rest.lower())
        if stem and (is_image_column(column) or column in LABEL_SUFFIXES):
            tiles.setdefault(member.folder + stem, {})[column] = (shard, member.offset, member.size)
    return {key: tile for key, tile in tiles.items() if any(map(is_image_column, tile))}


def _split_at_first_dot(name: str) -> tuple[str, str]:
    stem, _, rest = name.partition(".")
    return stem, rest


def _split_at_last_dot(name: str) -> tuple[str, str]:
    """Split a name at its last dot; the band before it stays with the suffix."""
    stem, _, rest = name.rpartition(".")
    above, _, band = stem.rpartition(".")
    return (above, f"{band}.{rest}") if above and is_band_name(band) else (stem, rest)


def _column_name(rest: str) -> str:
    """Return `tif` for 7.tif, `mask.png` for 7.mask.png, and the band `B2` for 7.B02.tif."""
    middle, dot, suffix = rest.rpartition(".")
    if f".{suffix}" in IMAGE_SUFFIXES and is_band_name(middle):
        return band_of(middle)
    return middle + dot + _SUFFIX_ALIASES.get(suffix, suffix)


def is_image_column(column: str) -> bool:
    """Check whether a column holds images."""
    is_file = f".{column.rpartition('.')[2]}" in IMAGE_SUFFIXES
    return is_file or column == MIXED_FORMATS or is_band_name(column)
