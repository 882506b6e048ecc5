"""Read loose image files below a folder: one file per tile, or one per band of a tile."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.images.headers import read_file
from moco_accel.images.kinds import RASTER_SUFFIXES
from moco_accel.recipe.bands import canonical_band
from moco_accel.sources.base import PackedNames, Source, Store, checksum, read_folder_metadata

# B02.tif, NAME_B02.tif, NAME_B8A_20m.jp2
_BAND_FILE = re.compile(r"(?:(?P<name>.+)[_.-])?(?P<band>B\d{1,2}A?)(?:[_.-]\d+m)?", re.I)
_SAMPLED_SIZES = 1000
_IMAGE, _LABEL, _FILE = "image", "label", "file"


class FolderStore(Store):
    """The image files `names` below `root`, as rows.

    Columns are `image` or one per band, then `file`, and `label` if every tile lies in a subfolder: the name of the
    topmost one.

    Raises:
        UserError: If files of whole tiles and files of single bands are mixed, or if tiles.json is damaged.
    """

    def __init__(self, root: Path, names: Sequence[str], source: Source) -> None:
        self.source, self.paths, self.metadata = source, [str(root)], read_folder_metadata(root, source)
        self._root, self._files = root, PackedNames(names)
        tiles = _group_band_files(names, source)
        if tiles is None:
            columns, self._file_numbers = [_IMAGE], np.arange(len(names))[:, None]
            with_label = all(len(Path(name).parts) > 1 for name in names)
        else:
            columns = sorted({band for by_band in tiles.values() for band in by_band}, key=_band_order)
            numbers = [[by_band.get(band, -1) for band in columns] for by_band in tiles.values()]
            self._file_numbers = np.array(numbers)  # [tiles, columns], of `names`; -1 if a tile lacks the file
            with_label = _has_class_folders(list(tiles))
        self.shard_sizes = [len(self._file_numbers)]
        self._column_numbers = {name: number for number, name in enumerate(columns)}
        self.features: dict[str, Any] = {name: datasets.Value("binary") for name in columns}
        self.features[_FILE] = datasets.Value("string")
        if with_label:
            self.features[_LABEL] = datasets.ClassLabel(names=sorted(set(self._topmost_folders())))

    def values(self, columns: Sequence[str], index: int) -> list[Any]:
        return [self._read(self._file_numbers[index, self._column_numbers[name]]) for name in columns]

    def column(self, name: str) -> list[Any]:
        if name == _FILE:
            return [self._first_file(index) for index in range(len(self))]
        if name == _LABEL:
            numbers = {folder: number for number, folder in enumerate(self.features[_LABEL].names)}
            return [numbers[folder] for folder in self._topmost_folders()]
        return [self.values([name], index)[0] for index in range(len(self))]

    def location(self, index: int) -> str:
        return str(self._root / self._first_file(index))

    def files(self) -> list[Path]:
        return [self._root / self._files[number] for number in range(len(self._files))]

    def digest(self) -> str:
        """Return a checksum of the files' names, and of the sizes of a sample: those of a million would take long."""
        step = -(-len(self._files) // _SAMPLED_SIZES)
        names = (self._files[number] for number in range(len(self._files)))
        return checksum(name if n % step else f"{name} {_size_of(self._root / name)}" for n, name in enumerate(names))

    def _first_file(self, index: int) -> str:
        return self._files[int(self._file_numbers[index].max())]

    def _topmost_folders(self) -> list[str]:
        return [Path(self._first_file(index)).parts[0] for index in range(len(self))]

    def _read(self, number: int) -> bytes | None:
        try:
            return None if number < 0 else read_file(self._root / self._files[number])
        except FileNotFoundError:  # deleted since: only this tile is damaged
            return None


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # deleted since: only this tile is damaged
        return -1


def _group_band_files(names: Sequence[str], source: Source) -> dict[str, dict[str, int]] | None:
    """Return the file number of each band, by tile; None if files hold whole tiles."""
    tiles: dict[str, dict[str, int]] = {}
    other = None
    for number, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        stem, suffix = os.path.splitext(file)  # noqa: PTH122 - called a million times
        match = _BAND_FILE.fullmatch(stem) if suffix.lower() in RASTER_SUFFIXES else None
        if match is None:
            other = other or name
            continue
        bands = tiles.setdefault(f"{folder}/{match['name'] or ''}", {})
        band = canonical_band(match["band"])
        if band in bands:
            raise UserError(f"{source}: {names[bands[band]]} and {name} are both {band} of one tile; keep one")
        bands[band] = number
    if all(len(bands) < 2 for bands in tiles.values()):
        return None
    if other is not None:
        band_file = names[next(iter(next(iter(tiles.values())).values()))]
        glob = f"{source.path.split('*')[0].rstrip('/')}/**/*B[0-9]*{Path(band_file).suffix}"
        raise UserError(
            f"{source} mixes band files such as {band_file} with {other}, which holds no single band; "
            f"{source.field}={glob!r} leaves it out"
        )
    return tiles


def _has_class_folders(tiles: Sequence[str]) -> bool:
    """Check that every topmost folder holds several tiles, not the bands of one."""
    topmost = Counter(tile.split("/")[0] for tile in tiles if tile.count("/") and tile.split("/")[0])
    return sum(topmost.values()) == len(tiles) > len(topmost)


def _band_order(band: str) -> tuple[int, str]:
    return int(re.sub(r"\D", "", band)), band
