"""What a user should know of a build: decided by its plan, or found in the tiles kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from moco_accel.imagery.options import Options
from moco_accel.scenes.clouds import OFFSET_BASELINE, cloud_rule
from moco_accel.scenes.layouts import LOWEST_FLOAT, Layout
from moco_accel.sources.tile_facts import TileFacts
from moco_accel.tiles.band_counter import BandCounter

_USUAL_NODATA = {"int16": (-32768, -9999), "float32": (LOWEST_FLOAT, -99999, -32768, -9999)}
_SUSPICIOUS_SHARE = 0.01


def plan_notes(layouts: Sequence[Layout], options: Options) -> list[str]:
    """Of how the scenes' headers were understood."""
    return [*_band_notes(layouts[0], layouts, options), *_number_notes(layouts, options)]


def _band_notes(first: Layout, layouts: Sequence[Layout], options: Options) -> Iterator[str]:
    if resampled := [band for band in first.bands if any(band in layout.resampled for layout in layouts)]:
        yield f"{', '.join(resampled)} were resampled to the finest band's pixels (bilinear)"
    pan = first.scene.panchromatic
    if pan and pan in first.scene.file_bands and pan not in first.bands and not options.bands:
        yield f"{pan} is panchromatic and was left out; --bands {','.join((*first.bands, pan))} takes it"


def _number_notes(layouts: Sequence[Layout], options: Options) -> Iterator[str]:
    sensors = {layout.scene.sensor for layout in layouts} - {None}
    if len(sensors) > 1:
        yield f"{' and '.join(sorted(map(str, sensors)))} name these bands alike, but their numbers differ"
    if {layout.scene.baseline >= OFFSET_BASELINE for layout in layouts if layout.scene.baseline} == {True, False}:
        yield "Sentinel-2 scenes from before and after baseline 04.00 mix; their numbers differ by 1,000"
    if any(layout.alpha for layout in layouts):
        names = ",".join((*layouts[0].bands, "nir"))
        yield f"the last band is alpha and was taken as a mask of data; --band-names {names} takes it as a band"
    if any(layout.zeros for layout in layouts):
        yield "pixels that are 0 in all bands count as no data: none is declared (--nodata says otherwise)"
    if options.max_cloud < 1:
        yield from _cloud_notes(layouts)


def _cloud_notes(layouts: Sequence[Layout]) -> Iterator[str]:
    ruled = [layout for layout in layouts if cloud_rule(layout)]
    if not ruled:
        yield f"no cloud test: of {layouts[0]} it is not known which numbers are white"
    elif any(x.scene.sensor == "landsat8" and not x.scene.surface and x.sun_elevation is None for x in ruled):
        yield "cloud test as if the sun stood overhead, for no _MTL.txt lies beside a scene: a low sun's clouds pass"


def nodata_notes(facts: TileFacts, layouts: Sequence[Layout], counter: BandCounter) -> Iterator[str]:
    """Of the pixels counted: those stored as `facts.nodata`, and those that look like no data and are not declared."""
    statistics = counter.statistics()
    if facts.dtype == "float32" and statistics.nodata_share > 0:
        yield f"pixels without data, or NaN ({statistics.nodata_share:.2%}), were stored as {facts.nodata!r}"
    if all(any(number is not None for number in layout.nodata) for layout in layouts):
        return
    for number in _USUAL_NODATA.get(facts.dtype, ()):
        share, band = max((_share(counter, index, number), band) for index, band in enumerate(facts.bands))
        if share > _SUSPICIOUS_SHARE:
            yield (
                f"{share:.1%} of {band} is {number!r} and counts as data, for nothing declares it; "
                f"--nodata={number!r} if it marks none"
            )


def _share(counter: BandCounter, band: int, number: float) -> float:
    values, times = counter.values(band)
    return float(times[np.asarray(values == number)].sum() / max(times.sum(), 1))
