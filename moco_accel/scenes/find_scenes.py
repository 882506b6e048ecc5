"""Group image files into scenes by their names: single files, or the band files of a Sentinel or Landsat scene."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from moco_accel.common.console import print_note
from moco_accel.common.errors import UserError
from moco_accel.images.kinds import PICTURE_SUFFIXES, RASTER_SUFFIXES, list_images
from moco_accel.recipe.bands import canonical_band
from moco_accel.images.other_formats import OTHER_SUFFIXES, reading_command

_BAND_FILE = re.compile(
    r"(?P<scene>.*?)(?:^|[_.-])(?P<band>(?:(?:SR|ST)_)?B(?:0?6_VCID_[12]|0?[1-9]|1[0-2]|8A))(?:_(?P<metres>\d\d)m)?$",
    re.IGNORECASE,
)
# Sentinel-1: …-vv-…-001.tiff and …-vh-…-002.tiff, or x_VV.tif and x_VH.tif
_POLARISATION_FILE = re.compile(r"(?P<scene>.*?)(?:^|[_.-])(?P<band>[VH][VH])(?P<more>-.*?)?(?:-\d{3})?", re.IGNORECASE)
_POLARISATIONS = ("vv", "vh", "hh", "hv")
# files beside band files: quality flags, angles, masks, classifications, previews
_NON_BAND_FILE = re.compile(
    r"(?P<scene>.*?)(?:^|[_.-])(?:(?:SR|ST)_)?(?:B?QA(?:_\w+)?|CLOUD_QA|ANG|[SV][AZ]A|PIXEL|RADSAT|ATRAN|CDIST|DRAD|EMIS"
    r"|EMSD|TRAD|URAD|AEROSOL|TCI|AOT|WVP|SCL|PVI|CLD|SNW|Fmask)(?:_\d\dm)?$",
    re.IGNORECASE,
)
_RESOLUTION_FOLDER = re.compile(r"R\d\dm")
_SENSORS = {
    "sentinel1": re.compile(r"(?:^|[_.-])S1[A-D](?:[_.-]|$)|sentinel[-_ ]?1(?!\d)", re.IGNORECASE),
    "sentinel2": re.compile(r"(?:^|[_.-])S2[A-D]?(?:[_.-]|$)|T\d\d[A-Z]{3}_\d{8}T\d{6}|sentinel[-_ ]?2", re.IGNORECASE),
    "landsat8": re.compile(r"(?:^|[_.-])(?:L[COT]?0?[89])(?:[_.-]|$|\d{13})|landsat[-_ ]?[89](?!\d)", re.IGNORECASE),
    "landsat7": re.compile(r"(?:^|[_.-])(?:L[ET]?0?[457])(?:[_.-]|$|\d{13})|landsat[-_ ]?[457](?!\d)", re.IGNORECASE),
}
_BandFile = tuple[Path, str, int]  # a file, its band, and metres per pixel or 0


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
    """

    scenes: list[Scene]
    non_band_files: list[Path]
    unnameable: list[Path]
    other_formats: list[Path]


def find_scenes(
    source: Path, field: str = "SRC", only: Sequence[str] = (), label_raster: Path | None = None
) -> FoundScenes:
    """Find the scenes in a folder, or in one file.

    Args:
        only: Patterns of the paths to take, relative to `source`; empty: all.
        label_raster: A file that is no scene though it may lie in the folder.

    Raises:
        UserError: If `source` does not exist or holds no images; the message names `field`.
    """
    found = find_images(source, field, only)
    labels = label_raster.resolve() if label_raster and source.is_dir() else None
    unnameable = [path for path in found if not is_utf8(path)]
    files = [path for path in found if is_utf8(path) and (labels is None or path.resolve() != labels)]
    root = source if source.is_dir() else source.parent
    band_files, others = _group_band_files(root, files)
    scenes = [_band_scene(root, key, members) for key, members in band_files.items()]
    non_band_files = []
    for path in others:
        match = _NON_BAND_FILE.fullmatch(path.stem) if path.suffix.lower() in RASTER_SUFFIXES else None
        is_beside = match and (_folder(root, path), match["scene"]) in band_files
        if is_beside or "QI_DATA" in path.parts:
            non_band_files.append(path)
        else:
            scenes.append(single_file(root, path))
    return FoundScenes(
        sorted(scenes, key=lambda scene: scene.name), non_band_files, unnameable, [] if only else _other_formats(source)
    )


def is_utf8(path: Path) -> bool:
    """Check whether a file's name can be written as text."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def find_images(
    source: Path, field: str = "SRC", only: Sequence[str] = (), log: Callable[[str], None] = print_note
) -> list[Path]:
    """Return the image files below a folder, sorted and without hidden ones; or the one file that `source` is.

    Args:
        only: Patterns of the paths to take, relative to `source`; empty: all.
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
    chosen = [path for path in found if matches(path.relative_to(source).as_posix(), only)] if only else found
    if not chosen:
        example = found[0].relative_to(source).as_posix()
        raise UserError(
            f"--only={only[0]!r} matches none of the {len(found):,} images in {str(source)!r}, e.g. {example}; "
            f"--only '*{found[0].suffix}' works"
        )
    return chosen


def _other_formats(source: Path) -> list[Path]:
    if not source.is_dir():
        return []
    names = list_images(source, OTHER_SUFFIXES, lambda line: None)
    return [path for path in map(source.joinpath, names) if path.is_file() and is_utf8(path) and reading_command(path)]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Check whether a path relative to SRC matches one of --only; `*` also matches slashes."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def single_file(root: Path, path: Path) -> Scene:
    """Return the scene of a single file, whose content tells its bands."""
    return _with_sensor(Scene(path.relative_to(root).as_posix(), (path,)), root, path.name)


def _group_band_files(root: Path, files: list[Path]) -> tuple[dict[tuple[Path, str], list[_BandFile]], list[Path]]:
    """Return band files by (folder, common part of their names), and all other files."""
    groups: dict[tuple[Path, str], list[_BandFile]] = {}
    others = []
    for path in files:
        if named := _parse_name(path):
            scene, band, metres = named
            groups.setdefault((_folder(root, path), scene), []).append((path, band, metres))
        else:
            others.append(path)
    return groups, others


def _parse_name(path: Path) -> tuple[str, str, int] | None:
    """Return the part of a band file's name that its scene shares, the band, and metres per pixel or 0."""
    if path.suffix.lower() not in RASTER_SUFFIXES:
        return None
    if match := _BAND_FILE.fullmatch(path.stem):
        return match["scene"], canonical_band(match["band"]), int(match["metres"] or 0)
    match = _POLARISATION_FILE.fullmatch(path.stem)
    return (match["scene"] + (match["more"] or ""), canonical_band(match["band"]), 0) if match else None


def _folder(root: Path, path: Path) -> Path:
    """Return the folder relative to `root`; Sentinel-2's R10m, R20m and R60m count as one."""
    folder = path.parent
    return (folder.parent if _RESOLUTION_FOLDER.fullmatch(folder.name) and folder != root else folder).relative_to(root)


def _band_scene(root: Path, key: tuple[Path, str], members: list[_BandFile]) -> Scene:
    """Take the finest file of each band, in the order of band numbers."""
    finest: dict[str, Path] = {}
    for path, band, _ in sorted(members, key=lambda member: member[2]):
        finest.setdefault(band, path)
    bands = sorted(finest, key=_band_order)
    first = members[0][0]
    name = Path(*key).as_posix() if len(members) > 1 else first.relative_to(root).as_posix()
    surface = any(re.search(r"(?:^|[_.-])SR_B", path.stem, re.IGNORECASE) for path, _, _ in members)
    scene = Scene(name, tuple(finest[band] for band in bands), tuple(bands), surface=surface)
    scene = _with_sensor(scene, root, first.name)
    if scene.sensor is None and ("B8A" in bands or {"vv", "vh"} <= set(bands)):
        return replace(scene, sensor="sentinel2" if "B8A" in bands else "sentinel1")
    return scene


def _band_order(band: str) -> tuple[int, str]:
    number = re.search(r"\d+", band)
    return (int(number[0]), band) if number else (_POLARISATIONS.index(band), "")


def _with_sensor(scene: Scene, root: Path, file_name: str) -> Scene:
    """Add sensor and baseline from the first name that tells, from the file's own up to SRC's."""
    path = scene.files[0]
    folders = [folder for folder in path.parents if folder == root or root in folder.parents]
    names = [Path(file_name).stem, *(folder.resolve().name for folder in folders)]
    sensors = (sensor for name in names for sensor, pattern in _SENSORS.items() if pattern.search(name))
    baselines = [int(found[1]) for name in names if (found := re.search(r"_N(\d{4})_", name))]
    return replace(scene, sensor=next(sensors, None), baseline=baselines[0] if baselines else 0)
