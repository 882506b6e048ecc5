"""Which files make which scene: images, multi-band files, and the band files of one Sentinel or Landsat scene.

Only names are looked at here. What a file really holds, its content says: rasters.py and pictures.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import canonical_band

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".jp2")

_BAND_SUFFIXES = (".tif", ".tiff", ".jp2")
_BAND_FILE = re.compile(
    r"(?P<scene>.*?)(?:^|[_.-])(?P<band>(?:(?:SR|ST)_)?B(?:0?[1-9]|1[0-2]|8A))(?:_VCID_[12])?(?:_(?P<metres>\d\d)m)?$",
    re.IGNORECASE,
)
# Sentinel-1's polarisations: …-vv-…-001.tiff and …-vh-…-002.tiff, or x_VV.tif and x_VH.tif
_POLARISATION_FILE = re.compile(r"(?P<scene>.*?)(?:^|[_.-])(?P<band>[VH][VH])(?P<more>-.*?)?(?:-\d{3})?", re.IGNORECASE)
_POLARISATIONS = ("vv", "vh", "hh", "hv")
# what lies beside band files and is none: quality flags, angles, masks, classifications, previews
_NO_BAND = re.compile(
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
_PANCHROMATIC = {"landsat8": "B8", "landsat7": "B8"}


@dataclass(frozen=True)
class Scene:
    """One file, or the band files of one scene with the band of each in `file_bands`.

    `name` is the file's path relative to SRC, or the folder and what the names of the band files have in common.
    `sensor` is sentinel1, sentinel2, landsat8 (8 and 9) or landsat7 (4, 5 and 7) where names tell. `surface`:
    Landsat's surface reflectance. `baseline`: Sentinel-2's processing baseline times 100 where a folder's name tells,
    else 0.
    """

    name: str
    files: tuple[Path, ...]
    file_bands: tuple[str, ...] = ()
    sensor: str | None = None
    surface: bool = False
    baseline: int = 0

    @property
    def panchromatic(self) -> str | None:
        """The band that is left out unless asked for: twice as fine as the others, and no colour."""
        return _PANCHROMATIC.get(self.sensor or "") if self.file_bands else None


@dataclass(frozen=True)
class Found:
    """Scenes, sorted by name, and files passed over because they lie beside band files and are no bands."""

    scenes: list[Scene]
    no_bands: list[Path]


def find_scenes(source: Path, field: str = "SRC") -> Found:
    """Scenes of the images under `source` (or of the one file it is). Raises UserError on none."""
    files = find_images(source, field)
    root = source if source.is_dir() else source.parent
    band_files, others = _group(root, files)
    scenes = [_band_scene(root, key, members) for key, members in band_files.items()]
    no_bands = []
    for path in others:
        match = _NO_BAND.fullmatch(path.stem) if path.suffix.lower() in _BAND_SUFFIXES else None
        beside = match and (_folder(root, path), match["scene"]) in band_files
        if beside or "QI_DATA" in path.parts:
            no_bands.append(path)
        else:
            scenes.append(single_file(root, path))
    return Found(sorted(scenes, key=lambda scene: scene.name), no_bands)


def find_images(source: Path, field: str = "SRC") -> list[Path]:
    """Files under `source` whose names end like images (or the one file it is), sorted. Raises UserError on none."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{field}={str(source)!r} does not exist; a folder of images or one image works")
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"{field}={str(source)!r} holds no images; files ending in {', '.join(SUFFIXES)} work")
    return found


def single_file(root: Path, path: Path) -> Scene:
    """The scene of one file alone; its own content says what bands it has."""
    return _with_sensor(Scene(path.relative_to(root).as_posix(), (path,)), root, path.name)


def _group(root: Path, files: Iterable[Path]) -> tuple[dict[tuple[Path, str], list[Path]], list[Path]]:
    """Band files by (folder, what their names have in common), and all other files."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    others = []
    for path in files:
        if named := _named_band(path):
            groups.setdefault((_folder(root, path), named[0]), []).append(path)
        else:
            others.append(path)
    return groups, others


def _named_band(path: Path) -> tuple[str, str, int] | None:
    """What a band file's name has in common with those of the same scene, its band, and metres of a pixel or 0."""
    if path.suffix.lower() not in _BAND_SUFFIXES:
        return None
    if match := _BAND_FILE.fullmatch(path.stem):
        return match["scene"], canonical_band(match["band"]), int(match["metres"] or 0)
    match = _POLARISATION_FILE.fullmatch(path.stem)
    return (match["scene"] + (match["more"] or ""), canonical_band(match["band"]), 0) if match else None


def _folder(root: Path, path: Path) -> Path:
    """Relative to `root`; Sentinel-2's R10m, R20m and R60m are one folder."""
    folder = path.parent
    return (folder.parent if _RESOLUTION_FOLDER.fullmatch(folder.name) and folder != root else folder).relative_to(root)


def _band_scene(root: Path, key: tuple[Path, str], members: list[Path]) -> Scene:
    """Of every band the finest file, in the order of their numbers."""
    finest: dict[str, tuple[int, Path]] = {}
    for path in members:
        named = _named_band(path)
        assert named
        _, band, metres = named
        if band not in finest or metres < finest[band][0]:
            finest[band] = (metres, path)
    bands = sorted(finest, key=_band_order)
    folder, prefix = key
    name = (folder / prefix).as_posix() if prefix else folder.as_posix()
    surface = any(re.search(r"(?:^|[_.-])SR_B", path.stem, re.IGNORECASE) for path in members)
    scene = Scene(name, tuple(finest[band][1] for band in bands), tuple(bands), surface=surface)
    if len(members) == 1:
        scene = replace(scene, name=members[0].relative_to(root).as_posix())
    scene = _with_sensor(scene, root, members[0].name)
    if scene.sensor is None and ("B8A" in bands or {"vv", "vh"} <= set(bands)):
        return replace(scene, sensor="sentinel2" if "B8A" in bands else "sentinel1")
    return scene


def _band_order(band: str) -> tuple[int, str]:
    number = re.search(r"\d+", band)
    return (int(number[0]), band) if number else (_POLARISATIONS.index(band), "")


def _with_sensor(scene: Scene, root: Path, file_name: str) -> Scene:
    """Names are asked from the file's own to that of SRC; the first that tells decides."""
    path = scene.files[0]
    folders = [folder for folder in path.parents if folder == root or root in folder.parents]
    names = [Path(file_name).stem, *(folder.resolve().name for folder in folders)]
    told = (sensor for name in names for sensor, pattern in _SENSORS.items() if pattern.search(name))
    baselines = [int(found[1]) for name in names if (found := re.search(r"_N(\d{4})_", name))]
    return replace(scene, sensor=next(told, None), baseline=baselines[0] if baselines else 0)
