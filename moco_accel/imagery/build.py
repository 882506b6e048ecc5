"""Anyone's imagery into shards of tiles: in parallel, in constant memory, and from where a killed build stopped."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from moco_accel.imagery.cutting import Cut, Cutter
from moco_accel.imagery.encoding import is_picture
from moco_accel.imagery.journal import Journal, Tally
from moco_accel.imagery.options import Options
from moco_accel.imagery.plan import Plan, make_plan
from moco_accel.imagery.shard_writer import GrowingShard
from moco_accel.imagery.workers import in_order
from moco_accel.recipe_text import RecipeError
from moco_accel.tile_facts import TileFacts, read_facts

OnProgress = Callable[[str, int, int, int], None]


@dataclass(frozen=True)
class Built:
    """What became of the imagery. `left_out` are (file, reason), the first thousand; `num_left_out` are all.

    `found_complete`: nothing was left to do. `num_resumed` tiles were there already. `seconds` of this call.
    """

    facts: TileFacts
    num_scenes: int
    num_tiles: int
    num_shards: int
    num_bytes: int
    skipped: dict[str, int]
    tiles_per_class: dict[str, int]
    num_left_out: int
    left_out: list[tuple[str, str]]
    notes: list[str]
    found_complete: bool = False
    num_resumed: int = 0
    seconds: float = 0.0


def build_tiles(
    source: Path,
    out_dir: Path,
    options: Options | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Built:
    """Cut scenes larger than the tile size into windows every `options.step` pixels; keep smaller ones whole.

    Columns: image (`datasets.Image` for one or three bands of 8 bits, else .npy bytes [bands, height, width]),
    image_pair with `pair_with`, label with either kind of labels, path (relative to `source`), scene, row and col in
    pixels, crs, and bounds (left, bottom, right, top; null without a CRS). What a window no longer fits into at the
    right and lower edge is left out. `on_progress(stage, done, all, tiles)` hears of `scenes` looked at, then of
    `windows` done.
    Raises RecipeError when there is nothing to read, nothing is kept, or `out_dir` holds something else.
    """
    started = time.monotonic()
    options = options or Options()
    hear = on_progress or (lambda stage, done, total, tiles: None)
    journal = Journal(out_dir, source, options)
    if not overwrite and (report := journal.finished()):
        return _built_before(report, out_dir)
    check_out(out_dir, overwrite or journal.folder.is_dir())
    tally = journal.begin(overwrite)
    resumed = tally.tiles
    try:
        workers = workers or _cores()
        plan = make_plan(source, options, workers, lambda done, total: hear("scenes", done, total, 0))
        if not tally.done:
            _grow(plan, journal, tally, workers, hear)
        report = _report(plan, tally)
        _check_kept(plan, tally, report)
        assert tally.counter
        facts = replace(plan.facts, statistics=tally.counter.statistics())
        journal.publish(tally.shards, report, facts.to_json())
    except RecipeError:
        if not tally.shards:
            journal.abandon()
        raise
    finally:
        journal.close()
    return _built(report, out_dir, facts, num_resumed=resumed, seconds=time.monotonic() - started)


def check_out(out: Path, may_hold_tiles: bool) -> None:
    """Raises RecipeError when `out` is a file, or holds what is not ours to replace."""
    if out.exists() and not out.is_dir():
        raise RecipeError(f"OUT={str(out)!r} is a file; a folder works, e.g. {out.with_suffix('')}_tiles")
    if not may_hold_tiles and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise RecipeError(f"OUT={str(out)!r} is not empty; choose another folder, or pass --overwrite")
    if foreign := set(out.glob("*.parquet")) - set(out.glob("tiles-*-of-*.parquet")):
        raise RecipeError(f"OUT={str(out)!r} holds other shards ({min(foreign).name}, …); choose another folder")


def _grow(plan: Plan, journal: Journal, tally: Tally, workers: int, hear: OnProgress) -> None:
    """Cut the units that are left and write them, a shard at a time."""
    total, schema = plan.num_windows, _schema(plan)
    compression = "snappy" if is_picture(len(plan.facts.bands), plan.facts.dtype) else "zstd"
    first_units = list(itertools.islice(plan.units(), tally.next_unit, tally.next_unit + workers))
    start = partial(Cutter, plan.source, plan.options, plan.classes)
    units = itertools.islice(plan.units(), tally.next_unit, None)
    shard: GrowingShard | None = None
    hear("windows", tally.windows, total, tally.tiles)
    try:
        for cut in in_order(start, units, max(1, min(workers, len(first_units)))):
            _count(tally, cut, plan)
            if cut.rows:
                shard = shard or GrowingShard(journal.shard(tally.shards), schema, compression)
                shard.write(cut.rows)
            hear("windows", tally.windows, total, tally.tiles)
            if shard and shard.next_would_exceed(plan.options.max_shard_mb << 20):
                _finish(shard, journal, tally)
                shard = None
        if shard:
            _finish(shard, journal, tally)
            shard = None
        tally.done = True
        journal.save(tally)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        hint = "there is room" if error.errno == errno.ENOSPC else "that is mended"
        raise RecipeError(
            f"OUT={str(journal.out)!r} cannot be written ({why}); whole shards stay ({tally.shards}), and the same "
            f"command goes on from there once {hint}"
        ) from None
    finally:
        if shard:
            shard.discard()


def _finish(shard: GrowingShard, journal: Journal, tally: Tally) -> None:
    shard.close()
    tally.shards += 1
    journal.save(tally)


def _count(tally: Tally, cut: Cut, plan: Plan) -> None:
    tally.next_unit += 1
    tally.scenes += cut.scenes
    tally.windows += cut.windows
    tally.tiles += len(cut.rows)
    tally.skipped.update(cut.skipped)
    tally.leave_out(cut.left_out)
    if plan.classes.names:
        tally.per_class.update(plan.classes.names[row["label"]] for row in cut.rows)
    if tally.counter and cut.counter:
        tally.counter.merge(cut.counter)
    tally.counter = tally.counter or cut.counter


def _schema(plan: Plan) -> Any:
    facts = plan.facts
    image = datasets.Image() if is_picture(len(facts.bands), facts.dtype) else datasets.Value("binary")
    columns: dict[str, Any] = {"image": image}
    if plan.options.pair_with:
        columns["image_pair"] = image
    if plan.classes.names:
        columns["label"] = datasets.ClassLabel(names=list(plan.classes.names))
    columns |= {"path": datasets.Value("string"), "scene": datasets.Value("string")}
    columns |= {"row": datasets.Value("int32"), "col": datasets.Value("int32"), "crs": datasets.Value("string")}
    columns["bounds"] = datasets.List(datasets.Value("float64"))
    schema = datasets.Features(columns).arrow_schema
    return schema.with_metadata({**schema.metadata, **facts.schema_metadata()})


def _report(plan: Plan, tally: Tally) -> dict[str, Any]:
    """What build.json keeps; nothing in it depends on how often the build was killed."""
    return {
        "num_scenes": tally.scenes,
        "num_tiles": tally.tiles,
        "num_shards": tally.shards,
        "skipped": dict(sorted(tally.skipped.items())),
        "tiles_per_class": {name: tally.per_class[name] for name in plan.classes.names},
        "num_left_out": len(plan.left_out) + tally.num_left_out,
        "left_out": (plan.left_out + tally.left_out)[:1000],
        "notes": plan.notes,
    }


def _check_kept(plan: Plan, tally: Tally, report: dict[str, Any]) -> None:
    if tally.tiles:
        return
    if tally.skipped:
        reasons = ", ".join(f"{name} {count:,}" for name, count in report["skipped"].items())
        raise RecipeError(
            f"none of {tally.windows:,} windows was kept ({reasons}); --max-nodata 1 --max-cloud 1 skips none for what "
            f"they show"
        )
    path, reason = report["left_out"][0]
    raise RecipeError(f"none of the images in {str(plan.source)!r} makes a tile; {path}: {reason}")


def _built(report: dict[str, Any], out_dir: Path, facts: TileFacts, **more: Any) -> Built:
    num_bytes = sum(path.stat().st_size for path in out_dir.glob("tiles-*-of-*.parquet"))
    fields = {name: value for name, value in report.items() if name != "asked"}
    fields["left_out"] = [(path, reason) for path, reason in report["left_out"]]
    return Built(facts=facts, num_bytes=num_bytes, **fields, **more)


def _built_before(report: dict[str, Any], out_dir: Path) -> Built:
    facts = read_facts(out_dir)
    assert facts
    return _built(report, out_dir, facts, found_complete=True)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
