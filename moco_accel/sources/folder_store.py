"""Loose image files: one per tile, or one per band of a tile; searched for throughout a folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from moco_accel.common.errors import UserError
from moco_accel.images.headers import read_file
from moco_accel.recipe.bands import canonical_band
from moco_accel.sources.base import IMAGES, PackedNames, Reading
from moco_accel.sources.tile_facts import TileFacts, read_facts

_RASTERS = (".tif", ".tiff", ".jp2")
# B02.tif, NAME_B02.tif, NAME_B8A_20m.jp2
_BAND_FILE = re.compile(r"(?:(?P<name>.+)[_.-])?(?P<band>B\d{1,2}A?)(?:[_.-]\d+m)?", re.I)
_IMAGE, _LABEL, _FILE = "image", "label", "file"


class FolderStore:
    """Files below `root`: `places[row, column]` is a file's number in `files`, -1 where a tile lacks it.

    Columns are `image`, or one per band; `file`; and, where all tiles lie in folders, `label`: the uppermost one.
    """

    def __init__(
        self,
        root: Path,
        files: PackedNames,
        columns: Sequence[str],
        places: npt.NDArray[np.int64],
        with_label: bool,
        facts: TileFacts | None,
    ) -> None:
        self._root, self._files, self._places = root, files, places
        self._column_numbers = {name: number for number, name in enumerate(columns)}
        self.facts = facts
        self.shard_sizes = [len(places)]
        self.features: dict[str, Any] = {name: datasets.Value("binary") for name in columns}
        self.features[_FILE] = datasets.Value("string")
        if with_label:
            self.features[_LABEL] = datasets.ClassLabel(names=sorted(set(self._label_folders())))

    def __len__(self) -> int:
        return len(self._places)

    def values(self, columns: Sequence[str], index: int) -> list[Any]:
        return [self._read(self._places[index, self._column_numbers[name]]) for name in columns]

    def at_random(self) -> FolderStore:
        return self

    def column(self, name: str) -> list[Any]:
        if name == _FILE:
            return [self._first_file(index) for index in range(len(self))]
        if name == _LABEL:
            numbers = {folder: number for number, folder in enumerate(self.features[_LABEL].names)}
            return [numbers[folder] for folder in self._label_folders()]
        return [self.values([name], index)[0] for index in range(len(self))]

    def where(self, index: int) -> str:
        return str(self._root / self._first_file(index))

    def reading(self, columns: Sequence[str]) -> Reading:
        return Reading()

    def _first_file(self, index: int) -> str:
        return self._files[int(self._places[index].max())]

    def _label_folders(self) -> Iterator[str]:
        for index in range(len(self)):
            yield Path(self._first_file(index)).parts[0]

    def _read(self, place: int) -> bytes | None:
        try:
            return None if place < 0 else read_file(self._root / self._files[place])
        except FileNotFoundError:  # gone since: this tile's damage
            return None


def open_folder(root: Path, files: Sequence[Path] | None, source: str, field: str) -> FolderStore | None:
    """All images below `root`, or `files` among them; None without any. Raises UserError when layouts are mixed."""
    names = _images_below(root) if files is None else [str(file.relative_to(root)) for file in files]
    if not names:
        return None
    facts = _facts(root, field)
    tiles = _bands_of_tiles(names, source, field)
    if tiles is None:
        in_folders = all(len(Path(name).parts) > 1 for name in names)
        return FolderStore(root, PackedNames(names), [_IMAGE], np.arange(len(names))[:, None], in_folders, facts)
    bands = sorted({band for by_band in tiles.values() for band in by_band}, key=_number)
    places = np.array([[by_band.get(band, -1) for band in bands] for by_band in tiles.values()])
    return FolderStore(root, PackedNames(names), bands, places, _are_classes(list(tiles)), facts)


def _images_below(root: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(folder, root)
        images = (name for name in files if name.lower().endswith(IMAGES) and not name.startswith("."))
        found += [name if below == "." else f"{below}/{name}" for name in images]
    return sorted(found)


def _bands_of_tiles(names: Sequence[str], source: str, field: str) -> dict[str, dict[str, int]] | None:
    """Per tile, the number of the file of each band; None where files hold whole tiles."""
    tiles: dict[str, dict[str, int]] = {}
    other = None
    for number, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        stem, suffix = os.path.splitext(file)  # noqa: PTH122 - a million times
        match = _BAND_FILE.fullmatch(stem) if suffix.lower() in _RASTERS else None
        if match is None:
            other = other or name
            continue
        bands = tiles.setdefault(f"{folder}/{match['name'] or ''}", {})
        band = canonical_band(match["band"])
        if band in bands:
            raise UserError(
                f"{field}={source!r}: {names[bands[band]]} and {name} are both {band} of one tile; keep one"
            )
        bands[band] = number
    if all(len(bands) < 2 for bands in tiles.values()):
        return None
    if other is not None:
        band_file = names[next(iter(next(iter(tiles.values())).values()))]
        glob = f"{source.split('*')[0].rstrip('/')}/**/*B[0-9]*{Path(band_file).suffix}"
        raise UserError(
            f"{field}={source!r}: files of one band each, such as {band_file}, lie beside {other}, which is none; "
            f"{field}={glob!r} leaves it out"
        )
    return tiles


def _are_classes(keys: Sequence[str]) -> bool:
    """Whether the uppermost folders hold several tiles each, and not one tile's bands."""
    uppermost = Counter(key.split("/")[0] for key in keys if key.count("/") and key.split("/")[0])
    return sum(uppermost.values()) == len(keys) > len(uppermost)


def _number(band: str) -> tuple[int, str]:
    return int(re.sub(r"\D", "", band)), band


def _facts(root: Path, field: str) -> TileFacts | None:
    try:
        return read_facts(root)
    except ValueError as error:
        raise UserError(f"{field}: {root / 'tiles.json'} is damaged ({error}); take it away") from None
