"""Read loose image files below a folder: one file per tile, or one per band of a tile."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from moco_accel.common.console import print_note
from moco_accel.common.errors import UserError, count_of
from moco_accel.images.band_files import BandFiles, Tile, band_order, group_band_files
from moco_accel.images.globs import any_matcher
from moco_accel.images.headers import read_file
from moco_accel.images.image_kinds import images_below
from moco_accel.recipe.bands import format_bands
from moco_accel.sources.base import PackedNames, Source, Store, checksum, read_folder_metadata
from moco_accel.sources.image_choice import MIN_SHARE, offer_glob

_SAMPLED_SIZES = 1000
_TRIED_TILES = 20  # to find a file that can be read
_MOVE = "files of one kind in a folder of their own work"
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
        self._root = root
        if found := find_band_files(root, names):
            _check_band_files(root, names, found, source)
            columns = sorted({band for bands in found.tiles.values() for band in bands}, key=band_order)
            rows = np.array([[bands.get(band, -1) for band in columns] for bands in found.tiles.values()])
            kept = np.unique(rows[rows >= 0])
            self._file_numbers = np.where(rows < 0, -1, np.searchsorted(kept, rows))  # [tiles, columns]; -1: no file
            self._files = PackedNames(names if len(kept) == len(names) else [names[number] for number in kept])
            with_label = _has_class_folders([folder for folder, _ in found.tiles])
        else:
            columns, self._file_numbers, self._files = [_IMAGE], np.arange(len(names))[:, None], PackedNames(names)
            with_label = all("/" in name for name in names)
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


def find_band_files(root: Path, names: Sequence[str]) -> BandFiles | None:
    """Group the files below a folder whose names are those of bands; None if each file is a tile."""
    found = group_band_files(names)
    return found if _hold_bands(root, names, found) else None


def _hold_bands(root: Path, names: Sequence[str], found: BandFiles) -> bool:
    """Check that files of one tile are there, and that the first of them that can be read holds one band."""
    if not found.has_tiles_of_bands:
        return False
    tiles = found.tiles.values()
    firsts = [min(bands.values()) for bands in tiles if len(bands) > 1] or [min(bands.values()) for bands in tiles]
    for number in firsts[:_TRIED_TILES]:
        for kind in images_below(root, [names[number]]).look().kinds.values():
            return kind.bands == 1
    return True


def _check_band_files(root: Path, names: Sequence[str], found: BandFiles, source: Source) -> None:
    """Print which files are left out.

    Raises:
        UserError: If files of whole tiles are among those of bands, a band is there twice, or kinds of tiles compete.
    """
    if found.repeated:
        first, second, band = found.repeated[0]
        raise UserError(f"{source}: {names[first]} and {names[second]} are both {band} of one tile; keep one")
    if found.others:
        of_bands = [names[number] for bands in found.tiles.values() for number in bands.values()]
        others = [names[number] for number in found.others]
        offered = _offer(root, source, of_bands, others)
        raise UserError(
            f"{source} mixes band files such as {of_bands[0]} with {count_of(len(others), 'image')} of no single band, "
            f"e.g. {others[0]}; {f'{offered} leaves them out' if offered else _MOVE}"
        )
    _check_one_kind(root, names, found, source)
    coarser = "of a band that is there with smaller pixels"
    for left, what in ((found.beside, "beside band files, which are no bands,"), (found.coarser, coarser)):
        if left:
            print_note(f"{source}: {count_of(len(left), 'image')} {what} are left out, e.g. {names[left[0]]}")


def _check_one_kind(root: Path, names: Sequence[str], found: BandFiles, source: Source) -> None:
    """Refuse kinds of tiles without a common band: another sensor's. Few tiles of another kind are damaged ones."""
    least = MIN_SHARE * len(found.tiles)
    kinds = [kind for kind in _kinds_of(found) if len(kind[1]) > least and (len(kind[0]) > 1 or len(kind[1]) > 1)]
    if len(kinds) < 2:
        return
    files = [[names[number] for tile in tiles for number in found.tiles[tile].values()] for _, tiles in kinds]
    texts = []
    for (bands, tiles), wanted in zip(kinds, files, strict=True):
        offered = _offer(root, source, wanted, [name for other in files if other is not wanted for name in other])
        listed = format_bands(sorted(bands, key=band_order))
        works = f"{offered} works" if offered else _MOVE
        texts.append(f"{len(tiles):,} of [{listed}], e.g. {min(wanted)}: {works}")
    raise UserError(
        f"{source} holds {len(kinds)} kinds of tiles with a file per band, of which one can be read: {'; '.join(texts)}"
    )


def _kinds_of(found: BandFiles) -> list[tuple[frozenset[str], list[Tile]]]:
    """Return sets of bands and the tiles that have some of each; no band is in two of them."""
    by_bands: dict[frozenset[str], list[Tile]] = {}
    for tile, files in found.tiles.items():
        by_bands.setdefault(frozenset(files), []).append(tile)
    kinds: list[tuple[frozenset[str], list[Tile]]] = []
    for bands, tiles in by_bands.items():
        joined = [kind for kind in kinds if kind[0] & bands]
        kinds = [kind for kind in kinds if kind not in joined]
        kinds.append((bands.union(*(kind[0] for kind in joined)), [x for kind in joined for x in kind[1]] + tiles))
    return kinds


def _offer(root: Path, source: Source, wanted: Sequence[str], others: Sequence[str]) -> str:
    """Return a value of the source's field that reads some files and not others, tried on all of them."""
    if offered := offer_glob(root, source)(wanted, others):
        return offered
    suffixes = {Path(name).suffix for name in wanted}
    suffix = suffixes.pop() if len(suffixes) == 1 else ""
    for letters in ("B[0-9]", "[bB][0-9]", "[vVhH][vVhH]"):
        matches = any_matcher([pattern := f"**/*{letters}*{suffix}"])
        if all(map(matches, wanted)) and not any(map(matches, others)):
            return f"{source.field}={f'{glob.escape(str(root))}/{pattern}'!r}"
    return ""


def _has_class_folders(folders: Sequence[str]) -> bool:
    """Check that every topmost folder holds several tiles, not the bands of one."""
    topmost = Counter(folder.split("/")[0] for folder in folders if folder)
    return sum(topmost.values()) == len(folders) > len(topmost)
