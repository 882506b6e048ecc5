"""Bands by name: one spelling each, what a sensor has, which three make a picture. A count is never trusted alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moco_accel.common.errors import UserError

# in order of wavelength number; B10 (cirrus) is absent from level 2A
SENTINEL2 = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
RGB = ("red", "green", "blue")

_NUMBERED = re.compile(r"(?:(?:SR|ST)_)?B(?:AND)?[ _-]?0*(\d+)(A?)(_VCID_[12])?")  # Landsat 7 has two gains of B6
_SHORT = {"r": "red", "g": "green", "b": "blue", "grey": "grey", "gray": "grey", "near infrared": "nir"}
# sensor → the numbered bands that are red, green, blue
_TRIPLES = {
    "sentinel2": ("B4", "B3", "B2"),
    "landsat8": ("B4", "B3", "B2"),  # 8 and 9
    "landsat7": ("B3", "B2", "B1"),  # 4, 5 and 7
}


def parse_bands(text: str, option: str) -> list[str]:
    """`B4,B3,B2` as names, as they are spelled. Raises UserError, naming `option`, on an empty name."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"{option}={text!r} has an empty name; names with a comma between them work, e.g. B8,B4,B3")
    return names


def name_bands(names: Sequence[str] | None, count: int) -> list[str]:
    """For a person: `names`, or `band 1` and so on where nobody knows them."""
    return list(names) if names else [f"band {number}" for number in range(1, count + 1)]


def canonical_band(name: str) -> str:
    """One spelling per band: `B01` and `b1` are `B1`, `B8a` is `B8A`, `SR_B4` is `B4`, `Red` and `R` are `red`."""
    text = name.strip()
    if numbered := _NUMBERED.fullmatch(text.upper()):
        return f"B{numbered[1]}{numbered[2]}{numbered[3] or ''}"
    lower = text.lower()
    return _SHORT.get(lower, lower)


def example_bands(count: int) -> str:
    """Names that `count` bands may have, as an option takes them."""
    named = {1: "elevation", 2: "VV,VH", 3: "red,green,blue", 4: "red,green,blue,nir"}
    return named.get(count) or ",".join(f"B{number}" for number in range(1, count + 1))


def canonical_bands(names: Sequence[str], field: str = "bands") -> list[str]:
    """`canonical_band` of each. Raises UserError, naming `field`, when two names mean the same band."""
    bands = [canonical_band(name) for name in names]
    twice = next((name for name, band in zip(names, bands, strict=True) if bands.count(band) > 1), None)
    if twice is not None:
        raise UserError(
            f"{field} {', '.join(names)}: {twice} and another are both {canonical_band(twice)}; name it once: "
            f"{','.join(dict.fromkeys(bands))}"
        )
    return bands


def select_bands(wanted: Sequence[str], stored: Sequence[str], field: str, source: str) -> list[int]:
    """Where each wanted band lies among the stored ones. Raises UserError, naming both lists, if one is missing."""
    have, want = canonical_bands(stored), canonical_bands(wanted)
    if missing := [band for band in want if band not in have]:
        raise UserError(
            f"{field}=[{', '.join(want)}] but {source!r} has [{', '.join(have)}]: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there"
        )
    return [have.index(band) for band in want]


def picture_bands(names: Sequence[str] | None, count: int, sensor: str | None = None) -> tuple[int, int, int]:
    """Which three of `count` bands to show as red, green and blue: true colour where names tell, else the first three.

    One band is shown as grey. `sensor` is a key of the shards' facts: sentinel2, landsat8, landsat7 or sentinel1.
    """
    have = canonical_bands(names) if names else []
    triples = [RGB, _TRIPLES[sensor]] if sensor in _TRIPLES else [RGB, _TRIPLES["sentinel2"]]
    for red, green, blue in triples:
        if {red, green, blue} <= set(have):
            return have.index(red), have.index(green), have.index(blue)
    return (0, 1, 2) if count >= 3 else (0, 0, 0)
