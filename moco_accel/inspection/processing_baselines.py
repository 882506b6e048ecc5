"""Detect a mix of Sentinel-2 processing baselines from the darkest pixels of each tile.

From baseline 04.00 on (25 January 2022) stored values are 1,000 higher, so that reflectance 0 is 1,000; nodata stays 0.
Water, shadow, vegetation and, in B11 and B12, snow are dark, so a tile's darkest bands show whether it has the offset.
Let d1 be the lowest and d3 the third lowest (with fewer bands the last) of the bands' 1st percentiles over pixels that
are not 0. A tile is

- without the offset if d1 < 600 (with it, the reflectance would be below -0.04) or d3 < 900;
- with the offset if d1 >= 900 and d3 < 1300: three bands are dark just above 1,000. Bright sand without it has one or
  two such bands;
- unclear otherwise, such as cloud and desert. Unclear tiles with d1 < 900 are the border.

Level 1C has B10 (cirrus), which is near 0 over any ground below high cloud. There its percentile is d1 and d3.

The tiles are a mix if there are enough of both kinds (3, and 1 in 200) and at least three times as many with the offset
as in the border: dark and arid ground of a single kind fills the border. All tiles are without the offset only if at
most 1 in 20 are too bright to tell. In red, green and blue of level 1C, haze brightens dark ground, and every tile with
the offset is too bright.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moco_accel.common.pixels import Pixels
from moco_accel.recipe.bands import SENTINEL2, canonical_bands

Verdict = Literal["without", "with", "mix", "unclear"]
Darkness = tuple[float, float]  # a tile's d1 and d3

_MAX_D1_WITHOUT, _MIN_D1_WITH, _MAX_D3_WITH = 600, 900, 1300
_MIN_PIXELS = 100
_MIN_TILES, _MIN_SHARE = 3, 1 / 200
_MIN_BORDER_RATIO = 3
_MAX_BRIGHT_SHARE = 1 / 20
_ONLY_SENTINEL2 = {"B8A", "B12"}  # not in any Landsat


@dataclass(frozen=True)
class Baselines:
    """The number of tiles of each kind and the verdict; `darkest` is (minimum, median, maximum) of d1 by kind."""

    verdict: Verdict
    without: int
    with_offset: int
    unclear: int
    darkest: dict[str, tuple[float, float, float]]


def may_be_sentinel2(bands: Sequence[str] | None, count: int, dtype: str, sensor: str | None) -> bool:
    """Check for 16-bit tiles of Sentinel-2, or of bands that only it has, or of 12 or 13 bands without names."""
    if dtype not in ("uint16", "int16"):
        return False
    if sensor is not None or bands is None:
        return sensor == "sentinel2" or (sensor is None and count in (12, 13))
    names = set(canonical_bands(bands))
    return names <= set(SENTINEL2) and bool(names & _ONLY_SENTINEL2)


def cirrus_index(bands: Sequence[str] | None, count: int) -> int | None:
    """Return the index of B10 in a Sentinel-2 tile, if it is there; 13 bands without names are in its order."""
    names = canonical_bands(bands) if bands is not None else list(SENTINEL2) if count == len(SENTINEL2) else []
    return names.index("B10") if "B10" in names else None


def darkness(tile: Pixels, cirrus: int | None = None) -> Darkness | None:
    """Return d1 and d3 of a tile [bands, height, width] with B10 at `cirrus`; None if too few pixels hold data."""
    if cirrus is not None and (low := _low(tile[cirrus])) is not None:
        return low, low
    lows = sorted(low for band in tile if (low := _low(band)) is not None)
    return (lows[0], lows[min(2, len(lows) - 1)]) if lows else None


def _low(band: Pixels) -> float | None:
    values = band[band != 0]
    place = values.size // 100
    return float(np.partition(values, place)[place]) if values.size >= _MIN_PIXELS else None


def classify_baselines(tiles: Sequence[Darkness]) -> Baselines:
    """Apply the rule of this module to each tile's `darkness`."""
    kinds: dict[str, list[float]] = {"without": [], "with": [], "border": [], "unclear": []}
    for lowest, third in tiles:
        kinds[_kind(lowest, third)].append(lowest)
    shown = {"without": kinds["without"], "with": kinds["with"], "unclear": kinds["border"] + kinds["unclear"]}
    without, with_offset, unclear = map(len, shown.values())
    darkest = {kind: (min(values), float(np.median(values)), max(values)) for kind, values in shown.items() if values}
    verdict = _verdict({kind: len(values) for kind, values in kinds.items()})
    return Baselines(verdict, without, with_offset, unclear, darkest)


def _kind(lowest: float, third: float) -> str:
    if lowest < _MAX_D1_WITHOUT or third < _MIN_D1_WITH:
        return "without"
    if lowest < _MIN_D1_WITH:
        return "border"
    return "with" if third < _MAX_D3_WITH else "unclear"


def _verdict(tiles: dict[str, int]) -> Verdict:
    total = sum(tiles.values())
    enough = max(min(_MIN_TILES, total), round(total * _MIN_SHARE), 1)
    if tiles["without"] < enough:
        return "with" if tiles["with"] >= enough else "unclear"
    if tiles["with"] >= max(enough, _MIN_BORDER_RATIO * tiles["border"]):
        return "mix"
    bright = tiles["unclear"] + max(0, tiles["with"] - tiles["border"])
    return "unclear" if bright > total * _MAX_BRIGHT_SHARE else "without"


def describe_baselines(found: Baselines) -> str:
    """Return advice for the verdict, followed by the numbers behind it."""
    counts = {
        "without": f"{found.without:,} tiles without the offset of 1,000",
        "with": f"{found.with_offset:,} with it",
        "unclear": f"{found.unclear:,} that could be either",
    }
    evidence = [
        f"{counts[kind]} (their darkest bands at {least:.0f} to {greatest:.0f}, median {median:.0f})"
        for kind, (least, median, greatest) in found.darkest.items()
    ]
    return f"{_ADVICE[found.verdict]}. {'; '.join(evidence)}"


_ADVICE: dict[Verdict, str] = {
    "without": "No offset: for physical units, data.scaling=reflectance",
    "with": (
        "Stored with the offset of processing baseline 04.00 and later: for physical units, "
        "data.scaling=reflectance_offset"
    ),
    "mix": (
        "Likely a mix of Sentinel-2 processing baselines, before and from 04.00 (25 January 2022); build them "
        "separately, or subtract 1,000 from the later ones: no single data.scaling fits both"
    ),
    "unclear": (
        "It is unclear whether the tiles have the offset of processing baseline 04.00 and later; check the products' "
        "dates: before 25 January 2022 data.scaling=reflectance, from then on reflectance_offset"
    ),
}


def baselines_as_json(found: Baselines) -> dict[str, Any]:
    """Return the JSON fields."""
    return {
        "verdict": found.verdict,
        "tiles_without_offset": found.without,
        "tiles_with_offset": found.with_offset,
        "tiles_unclear": found.unclear,
        "darkest_band": found.darkest,
        "explanation": describe_baselines(found),
    }
