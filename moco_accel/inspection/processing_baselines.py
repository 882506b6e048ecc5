"""Do Sentinel-2 tiles of both kinds of processing baseline lie side by side? Told from their darkest pixels.

From baseline 04.00 on (25 January 2022) 1,000 is added to what is stored, so that reflectance 0 is 1,000; nodata stays
0. Water, shadow, vegetation and, in B11 and B12, snow are dark, so a tile's darkest bands tell its kind. The rule, from
the 1st percentiles of a tile's bands over pixels that are not 0, d1 the lowest and d3 the third lowest (of fewer bands
the last):

- without the offset: d1 < 600 (with it, that were reflectance -0.04) or d3 < 900;
- with it: d1 >= 900 and d3 < 1300, three bands dark at once just above 1,000; bright sand without it has one or two;
- unclear: the rest, such as cloud and desert. Those of them with d1 < 900 are the border.

Level 1C has B10 (cirrus), which sees nothing below high cloud and is near 0 over any ground: there it is d1 and d3.

The tiles are a mix if there are enough of both kinds (3, and 1 in 200) and a valley lies between them: at least three
times as many with the offset as in the border. Dark and arid ground of one kind fills the border instead. They are
all without it only if hardly any (1 in 20) are too bright to tell: in red, green and blue of level 1C, haze hides what
is dark, and every tile with the offset is such a one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moco_accel.common.pixels import Pixels
from moco_accel.recipe.bands import SENTINEL2, canonical_bands

Verdict = Literal["without", "with", "mix", "unclear"]
Darkness = tuple[float, float]
"""d1 and d3 of a tile."""

_SURELY_WITHOUT, _ALMOST_OFFSET, _STILL_DARK = 600, 900, 1300
_LEAST_PIXELS = 100
_LEAST_TILES, _LEAST_SHARE = 3, 1 / 200
_VALLEY = 3
_BRIGHT_SHARE = 1 / 20
_ONLY_SENTINEL2 = {"B8A", "B12"}  # no Landsat has them


@dataclass(frozen=True)
class Baselines:
    """How many tiles of each kind, and what follows; `darkest` holds (least, median, greatest) d1 of a kind."""

    verdict: Verdict
    without: int
    with_offset: int
    unclear: int
    darkest: dict[str, tuple[float, float, float]]

    @property
    def is_mix(self) -> bool:
        return self.verdict == "mix"


def may_be_sentinel2(bands: Sequence[str] | None, count: int, dtype: str, sensor: str | None) -> bool:
    """16-bit tiles of that sensor, or of bands that only it has; unnamed ones if there are 12 or 13."""
    if dtype not in ("uint16", "int16"):
        return False
    if sensor is not None or bands is None:
        return sensor == "sentinel2" or (sensor is None and count in (12, 13))
    names = set(canonical_bands(bands))
    return names <= set(SENTINEL2) and bool(names & _ONLY_SENTINEL2)


def cirrus_of(bands: Sequence[str] | None, count: int) -> int | None:
    """Where B10 is among a Sentinel-2 tile's bands; unnamed ones are all 13 in their order."""
    names = canonical_bands(bands) if bands is not None else list(SENTINEL2) if count == len(SENTINEL2) else []
    return names.index("B10") if "B10" in names else None


def darkness(tile: Pixels, cirrus: int | None = None) -> Darkness | None:
    """d1 and d3 of a tile [bands, height, width], B10 at `cirrus`; None where hardly a pixel holds data."""
    if cirrus is not None and (low := _low(tile[cirrus])) is not None:
        return low, low
    lows = sorted(low for band in tile if (low := _low(band)) is not None)
    return (lows[0], lows[min(2, len(lows) - 1)]) if lows else None


def _low(band: Pixels) -> float | None:
    values = band[band != 0]
    place = values.size // 100
    return float(np.partition(values, place)[place]) if values.size >= _LEAST_PIXELS else None


def tell_baselines(tiles: Sequence[Darkness]) -> Baselines:
    """The rule at the head of this module, over the `darkness` of each tile."""
    kinds: dict[str, list[float]] = {"without": [], "with": [], "border": [], "unclear": []}
    for lowest, third in tiles:
        kinds[_kind(lowest, third)].append(lowest)
    unclear = kinds["border"] + kinds["unclear"]
    shown = {"without": kinds["without"], "with": kinds["with"], "unclear": unclear}
    return Baselines(
        _verdict({kind: len(values) for kind, values in kinds.items()}),
        len(kinds["without"]),
        len(kinds["with"]),
        len(unclear),
        {kind: (min(values), float(np.median(values)), max(values)) for kind, values in shown.items() if values},
    )


def _kind(lowest: float, third: float) -> str:
    if lowest < _SURELY_WITHOUT or third < _ALMOST_OFFSET:
        return "without"
    if lowest < _ALMOST_OFFSET:
        return "border"
    return "with" if third < _STILL_DARK else "unclear"


def _verdict(tiles: dict[str, int]) -> Verdict:
    total = sum(tiles.values())
    enough = max(min(_LEAST_TILES, total), round(total * _LEAST_SHARE), 1)
    if tiles["without"] < enough:
        return "with" if tiles["with"] >= enough else "unclear"
    if tiles["with"] >= max(enough, _VALLEY * tiles["border"]):
        return "mix"
    bright = tiles["unclear"] + max(0, tiles["with"] - tiles["border"])
    return "unclear" if bright > total * _BRIGHT_SHARE else "without"


def explain_baselines(found: Baselines) -> str:
    """What was found, the numbers it rests on, and what to do about it."""
    counts = {
        "without": f"{found.without:,} tiles without the offset of 1,000",
        "with": f"{found.with_offset:,} with it",
        "unclear": f"{found.unclear:,} that could be either",
    }
    evidence = [
        f"{text} (their darkest bands at {least:.0f} to {greatest:.0f}, median {median:.0f})"
        for kind, text in counts.items()
        for least, median, greatest in [found.darkest.get(kind, (0, 0, 0))]
        if kind in found.darkest
    ]
    return f"{_ADVICE[found.verdict]}. {'; '.join(evidence)}"


_ADVICE: dict[Verdict, str] = {
    "without": "No offset: data.scaling=reflectance, where physical units are wanted",
    "with": (
        "Stored with the offset of processing baseline 04.00 and later: data.scaling=reflectance_offset, where "
        "physical units are wanted"
    ),
    "mix": (
        "Likely a mix of Sentinel-2 processing baselines, before and from 04.00 (25 January 2022); build them apart, "
        "or take 1,000 off the later ones: no single data.scaling fits both"
    ),
    "unclear": (
        "It cannot be told whether they are stored with the offset of processing baseline 04.00 and later; look up the "
        "products' dates: before 25 January 2022 data.scaling=reflectance, after it reflectance_offset"
    ),
}


def as_fields(found: Baselines) -> dict[str, Any]:
    """For JSON."""
    return {
        "verdict": found.verdict,
        "tiles_without_offset": found.without,
        "tiles_with_offset": found.with_offset,
        "tiles_unclear": found.unclear,
        "darkest_band": found.darkest,
        "explanation": explain_baselines(found),
    }
