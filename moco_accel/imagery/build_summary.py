"""Summarise a build for build.json, and explain why a build kept no tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.imagery.journal import MAX_LISTED
from moco_accel.imagery.labels import NO_LABEL, UNCLEAR, UNNAMED
from moco_accel.imagery.paired_seasons import PAIRING_RULE
from moco_accel.imagery.plan import BuildPlan
from moco_accel.imagery.tile_cutter import BuildProgress
from moco_accel.scenes.layouts import LOWEST_FLOAT, Layout
from moco_accel.sources.tile_metadata import TileMetadata
from moco_accel.tiles.running_statistics import RunningStatistics

_MAX_UNNAMED = 20  # classes that are counted one by one
_COMMON_NODATA = {"int16": (-32768, -9999), "float32": (LOWEST_FLOAT, -99999, -32768, -9999)}
_SUSPICIOUS_SHARE = 0.01
_OPTION_OF_REASON = {"no data": "--max-nodata", "cloud white": "--max-cloud"}


def summarize_build(plan: BuildPlan, progress: BuildProgress) -> dict[str, Any]:
    """Return the content of build.json; it does not depend on how often the build was killed."""
    notes = list(_nodata_notes(plan.metadata, plan.layouts, progress.counter)) if progress.counter else []
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


def _nodata_notes(metadata: TileMetadata, layouts: Sequence[Layout], counter: RunningStatistics) -> Iterator[str]:
    """Yield notes on pixels stored as `metadata.nodata`, and on values that look like undeclared nodata."""
    statistics = counter.statistics()
    if metadata.dtype == "float32" and statistics.nodata_share > 0:
        yield f"pixels without data or NaN ({statistics.nodata_share:.2%}) were stored as {metadata.nodata!r}"
    if all(any(number is not None for number in layout.nodata) for layout in layouts):
        return
    for number in _COMMON_NODATA.get(metadata.dtype, ()):
        share, band = max((_share(counter, index, number), band) for index, band in enumerate(metadata.bands))
        if share > _SUSPICIOUS_SHARE:
            yield (
                f"{share:.1%} of {band} is {number!r} and counts as data, because no nodata number is declared; "
                f"pass --nodata={number!r} if it marks no data"
            )


def _share(counter: RunningStatistics, band: int, number: float) -> float:
    values, counts = counter.values(band)
    return float(counts[np.asarray(values == number)].sum() / max(counts.sum(), 1))
