"""Group image files into scenes by their names: single files, or the band files of a Sentinel or Landsat scene."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moco_accel.common.console import print_note
from moco_accel.common.errors import UserError
from moco_accel.images.band_files import Tile, band_order, group_band_files
from moco_accel.images.globs import any_matcher
from moco_accel.images.kinds import PICTURE_SUFFIXES, list_images
from moco_accel.images.other_formats import OTHER_SUFFIXES, reading_command

_SENSORS = {
    "sentinel1": re.compile(r"(?:^|[_.-])S1[A-D](?:[_.-]|$)|sentinel[-_ ]?1(?!\d)", re.IGNORECASE),
    "sentinel2": re.compile(r"(?:^|[_.-])S2[A-D]?(?:[_.-]|$)|T\d\d[A-Z]{3}_\d{8}T\d{6}|sentinel[-_ ]?2", re.IGNORECASE),
    "landsat8": re.compile(r"(?:^|[_.-])(?:L[COT]?0?[89])(?:[_.-]|$|\d{13})|landsat[-_ ]?[89](?!\d)", re.IGNORECASE),
    "landsat7": re.compile(r"(?:^|[_.-])(?:L[ET]?0?[457])(?:[_.-]|$|\d{13})|landsat[-_ ]?[457](?!\d)", re.IGNORECASE),
}


@dataclass(frozen=True)
class Scene:
    """One file, or the band files of one scene.

    Attributes:
        name: The file's path relative to SRC; for band files, the folder and the common part of their names.
        files: One file, or one per band.
        file_bands: The band of each file; empty for a single file.
        sensor: sentinel1, sentinel2, landsat8 (8 and 9) or landsat7 (4, 5 and 7), if a name tells.
        surface: True for Landsat's surface reflectance.
        baseline: Sentinel-2's processing baseline times 100, if a folder's name tells; else 0.
    """

    name: str
    files: tuple[Path, ...]
    file_bands: tuple[str, ...] = ()
    sensor: str | None = None
    surface: bool = False
    baseline: int = 0

    @property
    def panchromatic(self) -> str | None:
        """The band that is left out by default: twice as fine as the others, and without colour."""
        return "B8" if self.file_bands and self.sensor in ("landsat7", "landsat8") else None


@dataclass(frozen=True)
class FoundScenes:
    """Scenes sorted by name, and files that are no scenes.

    Attributes:
        non_band_files: Files beside band files that are no bands.
        other_formats: Files that hold imagery in a format that a build does not read.
        unnameable: Files whose names are no UTF-8, which neither GDAL nor parquet can hold.
        names: Paths of all images relative to SRC, of those that were not asked for, too.
    """

    scenes: list[Scene]
    non_band_files: list[Path]
    unnameable: list[Path]
    other_formats: list[Path]
    names: list[str]


def find_scenes(
    source: Path, field: str = "SRC", only: Sequence[str] = (), label_raster: Path | None = None
) -> FoundScenes:
    """Find the scenes in a folder, or in one file.

    Args:
        only: Globs of the files to take; empty: all. One without a slash is of names in any folder, one with a slash
            is of paths relative to `source`, in which ** stands for any number of folders.
        label_raster: A file that is no scene though it may lie in the folder.

    Raises:
        UserError: If `source` does not exist or holds no images; the message names `field`.
    """
    every = find_images(source, field)
    found = _choose(source, every, only) if only and source.is_dir() else every
    labels = label_raster.resolve() if label_raster and source.is_dir() else None
    unnameable = [path for path in found if not is_utf8(path)]
    files = [path for path in found if is_utf8(path) and (labels is None or path.resolve() != labels)]
    root = source if source.is_dir() else source.parent
    grouped = group_band_files([path.relative_to(root).as_posix() for path in files])
    if grouped.repeated:
        first, second, band = grouped.repeated[0]
        both = " and ".join(files[number].relative_to(root).as_posix() for number in (first, second))
        raise UserError(f"{field}={str(source)!r}: {both} are both {band} of one scene; keep one")
    scenes = [
        _band_scene(root, tile, {band: files[number] for band, number in bands.items()})
        for tile, bands in grouped.tiles.items()
    ]
    scenes += [single_file(root, files[number]) for number in grouped.others]
    non_band_files = [files[number] for number in grouped.beside]
    return FoundScenes(
        sorted(scenes, key=lambda scene: scene.name),
        non_band_files,
        unnameable,
        [] if only else _other_formats(source),
        [path.relative_to(root).as_posix() for path in every],
    )


def is_utf8(path: Path) -> bool:
    """Check whether a file's name can be written as text."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def find_images(
    source: Path, field: str = "SRC", only: Sequence[str] = (), log: Callable[[str], None] = print_note
) -> list[Path]:
    """Return the image files below a folder, sorted and without hidden ones; or the one file that `source` is.

    Args:
        only: Globs of the files to take; empty: all. One without a slash is of names in any folder, one with a slash
            is of paths relative to `source`, in which ** stands for any number of folders.
        log: Receives lines on links and folders that cannot be read.

    Raises:
        UserError: If there are none.
    """
    if source.is_file():
        command = reading_command(source)
        if command and not source.name.lower().endswith(PICTURE_SUFFIXES):
            raise UserError(f"{field}={str(source)!r} is of a format that is not read; {command}")
        return [source]
    if not source.is_dir():
        raise UserError(f"{field}={str(source)!r} does not exist; a folder of images or one image works")
    paths = (source / name for name in list_images(source, PICTURE_SUFFIXES, log))
    found = sorted(path for path in paths if path.is_file())
    if not found and (others := _other_formats(source)):
        raise UserError(
            f"{field}={str(source)!r} holds no images, but {len(others):,} files of formats that are not read, e.g. "
            f"{others[0].relative_to(source)}; {reading_command(others[0])}"
        )
    if not found:
        raise UserError(f"{field}={str(source)!r} holds no images; files ending in {', '.join(PICTURE_SUFFIXES)} work")
    return _choose(source, found, only) if only else found


def _choose(source: Path, found: Sequence[Path], only: Sequence[str]) -> list[Path]:
    """Return the files that match one of --only."""
    names = [path.relative_to(source).as_posix() for path in found]
    matches = any_matcher(only)
    if chosen := [path for path, name in zip(found, names, strict=True) if matches(name)]:
        return chosen
    raise UserError(
        f"--only={only[0]!r} matches none of the {len(found):,} images in {str(source)!r}, e.g. {names[0]}; "
        f"--only {shlex.quote(_similar_glob(source, only[0], names))} works"
    )


def _similar_glob(source: Path, pattern: str, names: Sequence[str]) -> str:
    """Return a glob like one that matches none of the names: of a path below `source`, or of a folder's files."""
    inside = pattern.removeprefix(f"{source}/").removeprefix("./").strip("/")
    tried = [f"{start}{inside}{end}" for start in ("", "**/") for end in ("", "/**/*")]
    return next((glob for glob in tried if any(map(any_matcher([glob]), names))), f"*{Path(names[0]).suffix}")


def _other_formats(source: Path) -> list[Path]:
    if not source.is_dir():
        return []
    names = list_images(source, OTHER_SUFFIXES, lambda line: None)
    return [path for path in map(source.joinpath, names) if path.is_file() and is_utf8(path) and reading_command(path)]


def single_file(root: Path, path: Path) -> Scene:
    """Return the scene of a single file, whose content tells its bands."""
    return _with_sensor(Scene(path.relative_to(root).as_posix(), (path,)), root, path.name)


def _band_scene(root: Path, tile: Tile, files: dict[str, Path]) -> Scene:
    """Return the scene of band files, in the order of band numbers."""
    bands = sorted(files, key=band_order)
    first = min(files.values())
    has_name = len(files) > 1 and any(tile)  # B02.tif and B03.tif in SRC itself share none
    name = Path(*tile).as_posix() if has_name else first.relative_to(root).as_posix()
    surface = any(re.search(r"(?:^|[_.-])SR_B", path.stem, re.IGNORECASE) for path in files.values())
    scene = Scene(name, tuple(files[band] for band in bands), tuple(bands), surface=surface)
    scene = _with_sensor(scene, root, first.name)
    if scene.sensor is None and ("B8A" in bands or {"vv", "vh"} <= set(bands)):
        return replace(scene, sensor="sentinel2" if "B8A" in bands else "sentinel1")
    return scene


def _with_sensor(scene: Scene, root: Path, file_name: str) -> Scene:
    """Add sensor and baseline from the first name that tells, from the file's own up to SRC's."""
    path = scene.files[0]
    folders = [folder for folder in path.parents if folder == root or root in folder.parents]
    names = [Path(file_name).stem, *(folder.resolve().name for folder in folders)]
    sensors = (sensor for name in names for sensor, pattern in _SENSORS.items() if pattern.search(name))
    baselines = [int(found[1]) for name in names if (found := re.search(r"_N(\d{4})_", name))]
    return replace(scene, sensor=next(sensors, None), baseline=baselines[0] if baselines else 0)
