"""Parse the names of files that hold one band of a tile, and group such files by tile."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from moco_accel.images.kinds import RASTER_SUFFIXES
from moco_accel.recipe.bands import canonical_band

_POLARISATIONS = ("vv", "vh", "hh", "hv")
# by wavelength; a hyphen stands for one, for an underscore or for nothing; those of STAC (nir08, swir16) are among them
_WORDS = (
    *("coastal", "coastal-blue", "coastal-aerosol", "ultra-blue", "blue", "green", "gre", "yellow", "red", "red-edge"),
    *("red-edge-1", "red-edge-2", "red-edge-3", "red-edge-4", "reg", "nir", "nir-1", "nir-2", "nir-08", "nir-09"),
    *("narrow-nir", "nir-narrow", "near-infrared", "cirrus", "swir", "swir-1", "swir-2", "swir-16", "swir-22", "mwir"),
    *("thermal", "tir", "tir-1", "tir-2", "lwir", "lwir-11", "lwir-12", "pan", "panchromatic"),
)
_WORD_BANDS = tuple(word.replace("-", "") for word in _WORDS)
_ALIASES = {  # Parrot writes gre and reg
    **dict.fromkeys(("coastalblue", "coastalaerosol", "ultrablue"), "coastal"),
    **{"nearinfrared": "nir", "narrownir": "nirnarrow", "panchromatic": "pan", "gre": "green", "reg": "rededge"},
}
_NUMBERED = r"(?:(?:SR|ST|BT|TOA)_)?(?:B(?:0?6_VCID_[12]|[0-9]{1,2}A?)|BAND_?[0-9]{1,2}A?)"
_WORD = "|".join(word.replace("-", "[_-]?") for word in _WORDS)
_METRES = r"(?:[_.-](?P<metres>[0-9]{1,4})m)?"
_BAND_FILE = re.compile(rf"[_.-](?P<band>{_NUMBERED}|[VH][VH]|{_WORD}){_METRES}\Z", re.I)
# Sentinel-1: s1a-iw-grd-vv-…-001.tiff and s1a-iw-grd-vh-…-002.tiff
_SAFE_POLARISATION = re.compile(r"[_.-](?P<band>[VH][VH])(?P<more>-.*?)(?:-[0-9]{3})?\Z", re.I)
# quality flags, angles, masks, classifications, previews
_NON_BAND_FILE = re.compile(
    r"[_.-](?:(?:SR|ST)_)?(?:B?QA(?:_\w+)?|CLOUD_QA|ANG|[SV][AZ]A|PIXEL|RADSAT|ATRAN|CDIST|DRAD|EMIS|EMSD|TRAD"
    r"|URAD|AEROSOL|ATMOS_OPACITY|TCI|AOT|WVP|SCL|PVI|CLD|CLP|CLM|SNW|Fmask|MSK_\w+|visual)(?:[_.-][0-9]+m)?\Z",
    re.I,
)
_LONGEST = 24  # characters of a band and metres; searching whole names would take longer
_RESOLUTION_FOLDER = re.compile(r"(?:(?P<above>.*)/)?R[0-9]{2}m", re.S)
_QUALITY_FOLDER = "QI_DATA"  # of Sentinel-2; masks in it have names of bands

Tile = tuple[str, str]
"""A folder and the part of a name that the bands of a tile share."""
_File = tuple[str, int, int]  # a band, metres per pixel or 0, and the number of a file


def parse_band_file(stem: str) -> tuple[str, str, int] | None:
    """Return the tile's name, the canonical band and metres per pixel (0 if not told) of a file's name.

    `T18_B8A_20m` is B8A of T18. None: it is no name of a band's file. Words such as red are bands only where
    `group_band_files` finds another band of the same tile.
    """
    text = "_" + stem  # every pattern begins with a separator, which is fast to find
    if found := _BAND_FILE.search(text, max(0, len(text) - _LONGEST)):
        return text[1 : found.start()], band_of(found["band"]), int(found["metres"] or 0)
    found = _SAFE_POLARISATION.search(text) if "-" in stem else None
    return (text[1 : found.start()] + found["more"], band_of(found["band"]), 0) if found else None


def parse_non_band_file(stem: str) -> str | None:
    """Return the name of the tile beside whose bands a file lies that is none: T18 for T18_SCL_20m; else None."""
    found = _NON_BAND_FILE.search(text := "_" + stem)
    return text[1 : found.start()] if found else None


def is_band_name(name: str) -> bool:
    """Check whether a name is that of a band: B02, B8A, SR_B4, VV, red, red_edge."""
    found = _BAND_FILE.match("_" + name)
    return found is not None and not found["metres"]


@lru_cache(maxsize=1024)
def band_of(text: str) -> str:
    """Return the canonical name of a band: B2, vv, rededge."""
    band = canonical_band(re.sub(r"\A(?:SR|ST|BT|TOA)_", "", text, flags=re.I))
    word = re.sub("[_-]", "", band)
    return _ALIASES.get(word, word) if word in _WORD_BANDS else band


def band_order(band: str) -> tuple[int, int, str]:
    """Return a sort key: polarisations, numbered bands by number, then words by wavelength."""
    if band in _POLARISATIONS:
        return 0, _POLARISATIONS.index(band), band
    if band in _WORD_BANDS:
        return 2, _WORD_BANDS.index(band), band
    number = re.search(r"\d+", band)
    return 1, int(number[0]) if number else 0, band


@dataclass(frozen=True)
class BandFiles:
    """Files by their names; a file is its number in the list.

    Attributes:
        tiles: The file of each band, by tile, in the order of the first files. A tile may have a single band.
        coarser: Files of bands that a tile has with fewer metres per pixel, too.
        repeated: Two files that are one band of a tile, with the same number of metres, and the band.
        beside: Files beside band files that are no bands.
        others: All other files.
    """

    tiles: dict[Tile, dict[str, int]] = field(default_factory=dict)
    coarser: list[int] = field(default_factory=list)
    repeated: list[tuple[int, int, str]] = field(default_factory=list)
    beside: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)

    @property
    def has_tiles_of_bands(self) -> bool:
        """Whether a tile has several files; otherwise each file may be a tile."""
        return bool(self.coarser or self.repeated) or any(len(bands) > 1 for bands in self.tiles.values())


def group_band_files(names: Sequence[str]) -> BandFiles:
    """Group files by tile: by folder and name without the band. The finest file of a band is taken.

    Args:
        names: Paths relative to one folder, with slashes.
    """
    files: dict[Tile, list[_File]] = {}
    rest = []
    for number, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        stem, suffix = os.path.splitext(file)  # noqa: PTH122 - called a million times
        may_be_band = suffix.lower() in RASTER_SUFFIXES and not folder.endswith(_QUALITY_FOLDER)
        parsed = parse_band_file(stem) if may_be_band else None
        if parsed is None:
            rest.append(number)
        else:
            tile, band, metres = parsed
            files.setdefault((_folder_of_tile(folder), tile), []).append((band, metres, number))
    rest += _drop_lone_words(files)
    found = BandFiles()
    for tile_key, members in files.items():
        found.tiles[tile_key] = _finest(members, found)
    _sort_rest(found, sorted(rest), names)
    return found


def _drop_lone_words(files: dict[Tile, list[_File]]) -> list[int]:
    """Drop tiles whose only band is a word that is no band of any tile with several; return their files."""
    if not any(band in _WORD_BANDS for band in {band for members in files.values() for band, _, _ in members}):
        return []
    bands_of = {tile: {band for band, _, _ in members} for tile, members in files.items()}
    known = set().union(*(bands for bands in bands_of.values() if len(bands) > 1))
    unknown = set(_WORD_BANDS) - known
    lone = [tile for tile, bands in bands_of.items() if len(bands) == 1 and bands <= unknown]
    return [number for tile in lone for _, _, number in files.pop(tile)]


def _finest(members: list[_File], found: BandFiles) -> dict[str, int]:
    """Return the finest file of each band, and add the others to `found`."""
    numbers = {band: number for band, _, number in members}
    if len(numbers) == len(members):
        return numbers
    finest: dict[str, tuple[int, int]] = {}
    for band, metres, number in sorted(members, key=lambda member: member[1]):
        kept = finest.setdefault(band, (metres, number))
        if kept[1] != number and kept[0] == metres:
            found.repeated.append((kept[1], number, band))
        elif kept[1] != number:
            found.coarser.append(number)
    return {band: number for band, (_, number) in finest.items()}


def _sort_rest(found: BandFiles, rest: Sequence[int], names: Sequence[str]) -> None:
    for number in rest:
        is_beside = found.tiles and _is_beside(names[number], found.tiles)
        (found.beside if is_beside else found.others).append(number)


def _is_beside(name: str, tiles: dict[Tile, dict[str, int]]) -> bool:
    folder, _, file = name.rpartition("/")
    stem, suffix = os.path.splitext(file)  # noqa: PTH122
    if suffix.lower() not in RASTER_SUFFIXES:
        return False
    tile = parse_non_band_file(stem)
    return (tile is not None and (_folder_of_tile(folder), tile) in tiles) or folder.endswith(_QUALITY_FOLDER)


def _folder_of_tile(folder: str) -> str:
    """Return the folder; Sentinel-2's R10m, R20m and R60m count as the one above them."""
    found = _RESOLUTION_FOLDER.fullmatch(folder) if folder.endswith("0m") else None
    return (found["above"] or "") if found else folder
