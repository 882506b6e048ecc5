"""Summarise a build for build.json, and explain why a build kept no tiles."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from moco_accel.common.errors import UserError
from moco_accel.imagery.journal import MAX_LISTED
from moco_accel.imagery.labels import NO_LABEL, UNCLEAR, UNNAMED
from moco_accel.imagery.paired_seasons import PAIRING_RULE
from moco_accel.imagery.plan import BuildPlan
from moco_accel.imagery.tile_cutter import BuildProgress, TileCutter
from moco_accel.imagery.windows import SkippedWindow, Tile, scene_windows
from moco_accel.images.gdal import gdal_settings
from moco_accel.scenes.image_files import UnreadableImage
from moco_accel.tiles.running_statistics import RunningStatistics
from moco_accel.tiles.statistics import MixedUnits, sample_indices
from moco_accel.tiles.unmarked_nodata import IN_ALL_BANDS, UnmarkedNodata

_MAX_UNNAMED = 20  # classes that are counted one by one
_SAMPLED_WINDOWS, _SAMPLED_JPEG_2000 = 200, 16  # a window of the latter costs a tenth of a second in each band
_OPTION_OF_REASON = {"no data": "--max-nodata", "cloud white": "--max-cloud"}


def summarize_build(plan: BuildPlan, progress: BuildProgress) -> dict[str, Any]:
    """Return the content of build.json; it does not depend on how often the build was killed."""
    notes = list(_value_notes(plan, progress.counter)) if progress.counter else []
    return {
        "num_scenes": progress.scenes,
        "num_tiles": progress.tiles,
        "num_shards": progress.shards,
        "skipped": _skipped(progress),
        "tiles_per_class": {name: progress.per_class[name] for name in plan.classes.names},
        "num_left_out": len(plan.left_out) + progress.num_left_out,
        "left_out": (plan.left_out + progress.left_out)[:MAX_LISTED],
        "notes": plan.notes + notes,
    }


def check_tiles_kept(plan: BuildPlan, progress: BuildProgress, summary: Mapping[str, Any]) -> None:
    """Raise UserError if the build kept no tile; the message gives reasons and remedies."""
    if progress.tiles:
        return
    if progress.skipped:
        reasons = ", ".join(f"{name}: {count:,}" for name, count in summary["skipped"].items())
        raise UserError(
            f"none of {progress.windows:,} windows was kept ({reasons}); {'; '.join(_hints(plan, summary['skipped']))}"
        )
    path, reason = summary["left_out"][0]
    raise UserError(f"none of the images in {str(plan.source)!r} yields a tile; {path}: {reason}")


def _skipped(progress: BuildProgress) -> dict[str, int]:
    """Skipped windows by reason, sorted; of many unnamed classes, only the most frequent are counted one by one."""
    skipped = dict(progress.skipped)
    unnamed = sorted((reason for reason in skipped if reason.endswith(UNNAMED)), key=lambda reason: -skipped[reason])
    if rest := sum(skipped.pop(reason) for reason in unnamed[_MAX_UNNAMED:]):
        skipped[f"other classes{UNNAMED}"] = rest
    return dict(sorted(skipped.items()))


def _hints(plan: BuildPlan, skipped: Mapping[str, int]) -> Iterator[str]:
    """Yield a remedy for each reason in `skipped`."""
    checks = {reason.removeprefix("partner: ") for reason in skipped}
    if options := [f"{option} 1" for reason, option in _OPTION_OF_REASON.items() if reason in checks]:
        yield f"{' '.join(options)} keeps them"
    if "damaged" in checks:
        yield "fetch the damaged files again"
    if "no partner" in skipped:
        yield f"no scene of --pair-with covers a whole tile: {PAIRING_RULE}"
    if unnamed := [reason for reason in skipped if reason.endswith(UNNAMED)]:
        numbers = [reason.removesuffix(UNNAMED).removeprefix("class ") for reason in unnamed]
        named = ", ".join(f"{n}={name}" for n, name in zip(plan.classes.values, plan.classes.names, strict=True))
        example = ",".join(f"{number}=class{number}" for number in numbers if number.isdigit())
        yield f"--class-names names {named}, the label raster has {', '.join(numbers)}; --class-names {example} works"
    if UNCLEAR in skipped:
        yield f"no class covers --min-majority {plan.options.majority:g} of a tile; try --min-majority 0.3"
    if NO_LABEL in skipped:
        yield "a label raster with data at the place of the scenes works"


def _value_notes(plan: BuildPlan, counter: RunningStatistics) -> Iterator[str]:
    """Yield notes on pixels without data, and on values in a sample of tiles that the reader will ask about, too."""
    nodata, share = plan.nodata, counter.statistics().nodata_share
    if plan.metadata.dtype == "float32" and share > 0:
        yield f"pixels without data or NaN ({share:.2%}) were stored as {nodata!r}"
    unmarked, units = UnmarkedNodata(), MixedUnits()
    with gdal_settings():
        for tile in _sampled_tiles(plan):
            unmarked.add(tile.pixels, tile.valid)
            units.add(tile.pixels, tile.valid)
    for number, share in unmarked.shares().items():
        bands = " in all bands" if len(plan.metadata.bands) > 1 and number in IN_ALL_BANDS else ""
        yield (
            f"{share:.1%} of the pixels are {number:g}{bands}, which nothing declares as no data; if they hold none: "
            f"--nodata={number:.17g} --overwrite"
        )
    yield from units.describe(str(plan.source))


def _sampled_tiles(plan: BuildPlan) -> Iterator[Tile]:
    """Yield evenly spread tiles of a build, read once more; the same ones however often it was killed."""
    blocks = [scene_windows(layout, plan.options) for layout in plan.layouts if not layout.is_gone]
    ends = list(itertools.accumulate(map(len, blocks)))
    cutter = TileCutter(plan.source, plan.options, plan.classes, plan.nodata)
    is_slow = any(path.suffix.lower() == ".jp2" for layout in plan.layouts for path, _ in layout.sources)
    for index in sample_indices(ends[-1] if ends else 0, _SAMPLED_JPEG_2000 if is_slow else _SAMPLED_WINDOWS):
        number = bisect_right(ends, index)
        block = blocks[number]
        with suppress(SkippedWindow, UnreadableImage):  # as the build itself has counted
            yield cutter.tile(block.layout, block.layout.grid, block[index - ends[number] + len(block)])
