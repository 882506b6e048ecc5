"""Band names: canonical spelling, selection by name, and the three bands that make a picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from moco_accel.common.errors import UserError

# by band number; level 2A has no B10 (cirrus)
SENTINEL2 = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
RGB = ("red", "green", "blue")
_BANDS_10_20 = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
_TREESAT = ("B2", "B3", "B4", "B8", "B5", "B6", "B7", "B8A", "B11", "B12", "B1", "B9")
_LANDSAT7 = ("B1", "B2", "B3", "B4", "B5", "B6_VCID_1", "B6_VCID_2", "B7", "B8")
_WORLDVIEW = ("coastal", "blue", "green", "yellow", "red", "rededge", "nir1", "nir2")
# by number of bands: the data, and the order in which it stores its bands
KNOWN_ORDERS: dict[int, list[tuple[str, tuple[str, ...]]]] = {
    1: [("heights", ("elevation",)), ("temperatures", ("thermal",)), ("a panchromatic image", ("pan",))],
    2: [("Sentinel-1", ("vv", "vh"))],
    3: [("true colour", RGB), ("infrared false colour", ("nir", "red", "green"))],
    4: [("NAIP", (*RGB, "nir")), ("PlanetScope", (*RGB[::-1], "nir"))],
    6: [("SSL4EO-L, surface reflectance of Landsat 5 and 7", ("B1", "B2", "B3", "B4", "B5", "B7"))],
    7: [
        ("SSL4EO-L, surface reflectance of Landsat 8 and 9", tuple(f"B{n}" for n in range(1, 8))),
        ("SSL4EO-L, Landsat 5", tuple(f"B{n}" for n in range(1, 8))),
    ],
    8: [("WorldView-2 and -3", _WORLDVIEW)],
    9: [("SSL4EO-L, Landsat 7", _LANDSAT7)],
    10: [("Sentinel-2's bands of 10 and 20 m", _BANDS_10_20)],
    11: [("SSL4EO-L, Landsat 8 and 9", tuple(f"B{n}" for n in range(1, 12)))],
    12: [
        ("Sentinel-2 level 2A", tuple(band for band in SENTINEL2 if band != "B10")),
        ("TreeSatAI", _TREESAT),
    ],
    13: [
        ("Sentinel-2 level 1C, SEN12MS and SSL4EO-S12", SENTINEL2),
        ("EuroSAT-MSI", (*(band for band in SENTINEL2 if band != "B8A"), "B8A")),
    ],
}
_MAX_LISTED = 16  # names in a message
_MAX_RANGE = 1024

_NUMBERED = re.compile(r"(?:(?:SR|ST)_)?B(?:AND)?[ _-]?0*(\d+)(A?)(_VCID_[12])?")  # Landsat 7 stores B6 in two gains
_SYNONYMS = {"r": "red", "g": "green", "b": "blue", "grey": "grey", "gray": "grey", "near infrared": "nir"}
_RGB_OF_SENSOR = {
    "sentinel2": ("B4", "B3", "B2"),
    "landsat8": ("B4", "B3", "B2"),  # also Landsat 9
    "landsat7": ("B3", "B2", "B1"),  # also Landsat 4 and 5
}


def parse_bands(text: str, option: str) -> list[str]:
    """Split `B4,B3,B2` into names; the spelling is kept, and `B1..B224` stands for B1, B2, … B224.

    Raises:
        UserError: If a name is empty. The message names `option`.
    """
    names = [name for entry in text.split(",") for name in _expand(entry.strip())]
    if not all(names):
        raise UserError(f"{option}={text!r} has an empty name; names with a comma between them work, e.g. B8,B4,B3")
    return names


def _expand(entry: str) -> list[str]:
    """Return the names of a range such as `B1..B224` or `ch01..ch12`, or the entry itself."""
    ends = re.fullmatch(r"(\D*)(\d{1,4})\.\.(\D*)(\d{1,4})", entry)
    if not ends or ends[1] != ends[3] or not 0 <= int(ends[4]) - int(ends[2]) < _MAX_RANGE:
        return [entry]
    digits = len(ends[2]) if ends[2].startswith("0") else 1
    return [f"{ends[1]}{number:0{digits}d}" for number in range(int(ends[2]), int(ends[4]) + 1)]


def format_bands(names: Sequence[str]) -> str:
    """Return `B1, B2, B3`; long lists are shortened to `B1, B2, … B224 (224)`."""
    if len(names) <= _MAX_LISTED:
        return ", ".join(names)
    return f"{', '.join(names[:2])}, … {names[-1]} ({len(names)})"


def band_labels(names: Sequence[str] | None, count: int) -> list[str]:
    """Return `names`, or `band 1`, `band 2`, … if the names are unknown."""
    return list(names) if names else [f"band {number}" for number in range(1, count + 1)]


def canonical_band(name: str) -> str:
    """Return the canonical name: `B01` and `b1` are `B1`, `B8a` is `B8A`, `SR_B4` is `B4`, `Red` and `R` are `red`."""
    text = name.strip()
    if numbered := _NUMBERED.fullmatch(text.upper()):
        return f"B{numbered[1]}{numbered[2]}{numbered[3] or ''}"
    lower = text.lower()
    return _SYNONYMS.get(lower, lower)


def example_bands(count: int) -> str:
    """Return plausible names for `count` bands, separated by commas, for error messages."""
    return _comma_list(_orders_of(count)[0][1])


def _comma_list(names: Sequence[str]) -> str:
    return ",".join(names) if len(names) <= _MAX_LISTED else f"{names[0]}..{names[-1]}"


def _orders_of(count: int) -> list[tuple[str, tuple[str, ...]]]:
    return KNOWN_ORDERS.get(count) or [("", tuple(f"B{number}" for number in range(1, count + 1)))]


def offer_bands(count: int, write: Callable[[Sequence[str]], str] = lambda x: f"--band-names {_comma_list(x)}") -> str:
    """Return every known order of `count` bands, each with the data that it is of; or an example, if none is known.

    Args:
        write: Returns what gives a list of names to a command.
    """
    return ", or ".join(write(names) + f" for {data}" * bool(data) for data, names in _orders_of(count))


def canonical_bands(names: Sequence[str], field: str = "bands") -> list[str]:
    """Apply `canonical_band` to each name.

    Raises:
        UserError: If two names mean the same band. The message names `field`.
    """
    bands = [canonical_band(name) for name in names]
    duplicate = next((name for name, band in zip(names, bands, strict=True) if bands.count(band) > 1), None)
    if duplicate is not None:
        raise UserError(
            f"{field} {format_bands(names)}: {duplicate} and another are both {canonical_band(duplicate)}; name it "
            f"once: {','.join(dict.fromkeys(bands))}"
        )
    return bands


def select_bands(wanted: Sequence[str], stored: Sequence[str], field: str, source: str) -> list[int]:
    """Return the index of each wanted band among the stored ones.

    Raises:
        UserError: If a wanted band is not stored. The message names `field` and `source` and shows both lists.
    """
    have, want = canonical_bands(stored), canonical_bands(wanted)
    if missing := [band for band in want if band not in have]:
        raise UserError(
            f"{field}=[{format_bands(want)}] but {source!r} has [{format_bands(have)}]: {format_bands(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there"
        )
    return [have.index(band) for band in want]


def picture_bands(names: Sequence[str] | None, count: int, sensor: str | None = None) -> tuple[int, int, int]:
    """Return the indices of the bands to show as red, green and blue.

    Args:
        names: Names of the bands. True colour is used if they tell it; otherwise the first three bands.
        count: Number of bands. With fewer than three, the first band is shown as grey.
        sensor: The shards' sensor: sentinel2, landsat8, landsat7 or sentinel1; None if unknown.
    """
    have = canonical_bands(names) if names else []
    for red, green, blue in (RGB, _RGB_OF_SENSOR.get(sensor or "sentinel2", _RGB_OF_SENSOR["sentinel2"])):
        if {red, green, blue} <= set(have):
            return have.index(red), have.index(green), have.index(blue)
    return (0, 1, 2) if count >= 3 else (0, 0, 0)
