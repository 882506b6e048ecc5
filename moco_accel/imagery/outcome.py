"""What became of a build: what build.json keeps of it, and why nothing was kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moco_accel.common.errors import UserError
from moco_accel.imagery.journal import Tally
from moco_accel.imagery.labels import NO_LABEL, UNCLEAR, UNNAMED
from moco_accel.imagery.notes import nodata_notes
from moco_accel.imagery.paired_seasons import RULE
from moco_accel.imagery.plan import Plan

_MAX_UNNAMED = 20  # classes counted by number


def report_of(plan: Plan, tally: Tally) -> dict[str, Any]:
    """What build.json keeps; nothing in it depends on how often the build was killed."""
    found = list(nodata_notes(plan.facts, plan.layouts, tally.counter)) if tally.counter else []
    return {
        "num_scenes": tally.scenes,
        "num_tiles": tally.tiles,
        "num_shards": tally.shards,
        "skipped": _skipped(tally),
        "tiles_per_class": {name: tally.per_class[name] for name in plan.classes.names},
        "num_left_out": len(plan.left_out) + tally.num_left_out,
        "left_out": (plan.left_out + tally.left_out)[:1000],
        "notes": plan.notes + found,
    }


def _skipped(tally: Tally) -> dict[str, int]:
    """Windows by reason, sorted; of many classes without a name only the largest by number."""
    skipped = dict(tally.skipped)
    unnamed = sorted((reason for reason in skipped if reason.endswith(UNNAMED)), key=lambda reason: -skipped[reason])
    if rest := sum(skipped.pop(reason) for reason in unnamed[_MAX_UNNAMED:]):
        skipped[f"other classes{UNNAMED}"] = rest
    return dict(sorted(skipped.items()))


def check_kept(plan: Plan, tally: Tally, report: Mapping[str, Any]) -> None:
    """Raises UserError when there is not one tile, with what would make one."""
    if tally.tiles:
        return
    if tally.skipped:
        reasons = ", ".join(f"{name}: {count:,}" for name, count in report["skipped"].items())
        raise UserError(
            f"none of {tally.windows:,} windows was kept ({reasons}); {'; '.join(_hints(plan, report['skipped']))}"
        )
    path, reason = report["left_out"][0]
    raise UserError(f"none of the images in {str(plan.source)!r} makes a tile; {path}: {reason}")


def _hints(plan: Plan, skipped: Mapping[str, int]) -> Iterator[str]:
    """For each reason there was, what to do about it."""
    checks = {reason.removeprefix("partner: ") for reason in skipped}
    options = [f"--max-{option} 1" for reason, option in _CHECKED.items() if reason in checks]
    if options:
        yield f"{' '.join(options)} keeps them"
    if "damaged" in checks:
        yield "damaged files need to be fetched again"
    if "no partner" in skipped:
        yield f"no scene of --pair-with covers a whole tile: {RULE}"
    if unnamed := [reason for reason in skipped if reason.endswith(UNNAMED)]:
        numbers = [reason.removesuffix(UNNAMED).removeprefix("class ") for reason in unnamed]
        named = ", ".join(f"{n}={name}" for n, name in zip(plan.classes.values, plan.classes.names, strict=True))
        example = ",".join(f"{number}=class{number}" for number in numbers if number.isdigit())
        yield f"--class-names names {named}, the label raster has {', '.join(numbers)}; --class-names {example} works"
    if UNCLEAR in skipped:
        yield f"no class covers --min-majority {plan.options.majority:g} of a tile; e.g. --min-majority 0.3"
    if NO_LABEL in skipped:
        yield "a label raster with data where the scenes lie works"


_CHECKED = {"no data": "nodata", "cloud white": "cloud"}
