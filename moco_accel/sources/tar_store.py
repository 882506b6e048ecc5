"""Read uncompressed tar shards of webdataset: tiles, and the columns of each."""

from __future__ import annotations

import json
import os
import re
import shlex
import tarfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from moco_accel.common.console import print_note
from moco_accel.common.errors import UserError
from moco_accel.images.band_files import group_band_files, is_band_name
from moco_accel.images.globs import find_globs
from moco_accel.images.headers import MAX_ENCODED_BYTES, DamagedTile
from moco_accel.images.image_kinds import Images
from moco_accel.images.kinds import IMAGE_SUFFIXES
from moco_accel.images.tar_members import (
    LABEL_SUFFIXES,
    MIXED_FORMATS,
    TarMember,
    Tile,
    group_members,
    is_image_column,
    list_tar_members,
)
from moco_accel.sources.base import PackedNames, Source, Store, read_folder_metadata
from moco_accel.sources.image_choice import ImageChoice, offer_shards
from moco_accel.sources.split_choice import SplitChoice

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_MAX_LABEL_BYTES = 1 << 16
_MAX_COLUMNS, _MAX_NAMED = 256, 5
_KEY, _LABEL = "__key__", "label"
_ABSENT = (-1, 0, 0)


class TarStore(Store):
    """Tiles in tar shards, as rows.

    Columns are named after the text that follows the first dot, as `datasets` does, or after the band in it. `label`
    comes from .cls, .json or .txt members.

    Raises:
        UserError: If a shard is compressed or damaged, if there are no tiles, or if tiles.json is damaged.
    """

    def __init__(self, files: list[Path], source: Source, split_choice: SplitChoice) -> None:
        self.source, self.paths = source, [str(file) for file in files]
        members = [_list_members(file, source) for file in files]
        shards = group_members(members)
        _log_passed_over(members, shards, source)
        shards = _choose_tiles(files, members, shards, split_choice)
        _merge_formats(shards)
        columns = list(dict.fromkeys(column for shard in shards for tile in shard.values() for column in tile))
        if len(columns) > _MAX_COLUMNS:
            raise UserError(
                f"{source}: its tiles have {len(columns)} kinds of images ({columns[0]}, {columns[1]}, …); "
                f"one per tile works, or one per band, at most {_MAX_COLUMNS}"
            )
        self.shard_sizes = [len(shard) for shard in shards]
        if not len(self) or not any(map(is_image_column, columns)):
            raise UserError(f"{source} holds tar shards without images; shards with {', '.join(IMAGE_SUFFIXES)} work")
        self.metadata = read_folder_metadata(files[0].parent, source)
        rows = [[tile.get(column, _ABSENT) for column in columns] for shard in shards for tile in shard.values()]
        self._index = np.array(rows, np.int64)  # [tiles, columns, 3]: shard, offset and bytes of a member
        self._keys = PackedNames([key for shard in shards for key in shard])
        self._column_numbers = {name: number for number, name in enumerate(columns)}
        self.features: dict[str, Any] = {name: datasets.Value("binary") for name in columns if is_image_column(name)}
        self.features[_KEY] = datasets.Value("string")
        labelled = (name for name in LABEL_SUFFIXES if name in columns and self._label(0, name) is not None)
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
        return _read_member(Path(self.paths[shard]), offset, size)

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


def _read_member(path: Path, offset: int, size: int) -> bytes:
    if size > MAX_ENCODED_BYTES:
        raise DamagedTile(f"has {size} bytes; at most {MAX_ENCODED_BYTES} are read")
    # opened for each tile: one open file per shard can exceed the limit of a process
    try:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)
    except OSError as error:
        raise DamagedTile(f"cannot be read ({error.strerror})") from None


def _list_members(file: Path, source: Source) -> list[TarMember]:
    try:
        return list_tar_members(file)
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        hint = f"gunzip < {file} > {file.with_suffix('')}-plain.tar makes one" if _is_gzip(file) else str(error)
        raise UserError(f"{source}: {file} is not a complete, uncompressed tar ({hint})") from None


def _merge_formats(shards: Sequence[dict[str, Tile]]) -> None:
    """Give images of several formats (0.png, 1.jpg) one column, if every tile has one image."""
    images = [[column for column in tile if is_image_column(column)] for shard in shards for tile in shard.values()]
    if len({columns[0] for columns in images}) < 2 or any(len(x) > 1 or "." in x[0] for x in images):
        return
    if any(is_band_name(columns[0]) for columns in images):
        return
    for tile in (tile for shard in shards for tile in shard.values()):
        column = next(filter(is_image_column, tile))
        tile[MIXED_FORMATS] = tile.pop(column)


def _choose_tiles(
    files: Sequence[Path],
    listed: Sequence[Sequence[TarMember]],
    shards: list[dict[str, Tile]],
    split_choice: SplitChoice,
) -> list[dict[str, Tile]]:
    """Return the tiles of the split that are no masks, if each tile is one image: its name is that of a file."""
    images: dict[str, tuple[int, int, int]] = {}  # shard, offset and bytes by name
    for file, members, shard in zip(files, listed, shards, strict=True):
        by_place = {member.offset: f"{file.name}/{member.folder}{member.name}" for member in members}
        for tile in shard.values():
            places = [place for column, place in tile.items() if is_image_column(column)]
            if len(places) > 1:
                return shards
            images[by_place[places[0][1]]] = places[0]
    source = split_choice.source
    _refuse_band_files(files, list(images), source)

    def read(name: str) -> bytes:
        shard, offset, size = images[name]
        return _read_member(files[shard], offset, size)

    names = split_choice.choose_images(list(images), "", [name.split("/", 1)[1] for name in images])
    choice = ImageChoice(source, split_choice.log, partial(_offer, files[0].parent, source))
    chosen = {images[name][:2] for name in choice.choose(Images(names, read))}
    return [
        {key: tile for key, tile in shard.items() if any(place[:2] in chosen for place in tile.values())}
        for shard in shards
    ]


def _refuse_band_files(files: Sequence[Path], names: Sequence[str], source: Source) -> None:
    """Refuse members such as x_B02.tif: in a tar, only a dot before the band tells that they are one tile."""
    bands = group_band_files(names)
    if not bands.has_tiles_of_bands:
        return
    first = names[min(next(tile for tile in bands.tiles.values() if len(tile) > 1).values())]
    raise UserError(
        f"{source} holds one file per band, e.g. {first}, and a tar tells bands by a dot (x.B02.tif); they work "
        f"unpacked: {_unpack(files[0])} and {source.field}={str(files[0].with_suffix(''))!r}"
    )


def _unpack(file: Path) -> str:
    target = str(file.with_suffix(""))
    return f"{shlex.join(['mkdir', '-p', target])} && {shlex.join(['tar', '-xf', str(file), '-C', target])}"


def _offer(folder: Path, source: Source, wanted: Sequence[str], others: Sequence[str]) -> str:
    """Offer the shards that hold all the wanted members and no others; else to unpack those."""
    if offered := offer_shards(folder, source, wanted, others):
        return offered
    shards = {name.split("/")[0] for name in wanted}
    members, rest = ([name.split("/", 1)[1] for name in names] for names in (wanted, others))
    found = find_globs(members, rest)
    if not found or len(shards) > 1:
        return ""
    file = folder / shards.pop()
    return f"{_unpack(file)} and {source.field}={str(file.with_suffix('')) + '/' + found[0]!r}"


def _log_passed_over(members: Sequence[Sequence[TarMember]], shards: Sequence[dict[str, Tile]], source: Source) -> None:
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


def _is_gzip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) == b"\x1f\x8b"
