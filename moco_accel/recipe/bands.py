"""Band names: canonical spelling, selection by name, and the three bands that make a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moco_accel.common.errors import UserError

# by band number; level 2A has no B10 (cirrus)
SENTINEL2 = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
RGB = ("red", "green", "blue")
NUMBERED_BAND = re.compile(r"B\d+A?")  # a canonical name

_NUMBERED = re.compile(r"(?:(?:SR|ST)_)?B(?:AND)?[ _-]?0*(\d+)(A?)(_VCID_[12])?")  # Landsat 7 stores B6 in two gains
_SYNONYMS = {"r": "red", "g": "green", "b": "blue", "grey": "grey", "gray": "grey", "near infrared": "nir"}
_RGB_OF_SENSOR = {
    "sentinel2": ("B4", "B3", "B2"),
    "landsat8": ("B4", "B3", "B2"),  # also Landsat 9
    "landsat7": ("B3", "B2", "B1"),  # also Landsat 4 and 5
}


def parse_bands(text: str, option: str) -> list[str]:
    """Split `B4,B3,B2` into names; the spelling is kept.

    Raises:
        UserError: If a name is empty. The message names `option`.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"{option}={text!r} has an empty name; names with a comma between them work, e.g. B8,B4,B3")
    return names


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
    named = {1: "elevation", 2: "VV,VH", 3: "red,green,blue", 4: "red,green,blue,nir"}
    return named.get(count) or ",".join(f"B{number}" for number in range(1, count + 1))


def canonical_bands(names: Sequence[str], field: str = "bands") -> list[str]:
    """Apply `canonical_band` to each name.

    Raises:
        UserError: If two names mean the same band. The message names `field`.
    """
    bands = [canonical_band(name) for name in names]
    duplicate = next((name for name, band in zip(names, bands, strict=True) if bands.count(band) > 1), None)
    if duplicate is not None:
        raise UserError(
            f"{field} {', '.join(names)}: {duplicate} and another are both {canonical_band(duplicate)}; name it once: "
            f"{','.join(dict.fromkeys(bands))}"
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
            f"{field}=[{', '.join(want)}] but {source!r} has [{', '.join(have)}]: {', '.join(missing)} "
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
