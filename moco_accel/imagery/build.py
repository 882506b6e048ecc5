"""Anyone's imagery into shards of tiles: in parallel, in constant memory, and from where a killed build stopped."""

from __future__ import annotations

import contextlib
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

from moco_accel.common.errors import UserError
from moco_accel.imagery.cutting import PAIR_COLUMN, Cut, Cutter, is_picture
from moco_accel.imagery.journal import REPORT_FILE, Journal, Tally
from moco_accel.imagery.options import Options, asked, check_out
from moco_accel.imagery.outcome import check_kept, report_of
from moco_accel.imagery.plan import Plan, make_plan
from moco_accel.imagery.workers import in_order
from moco_accel.sources.shard_writer import GrowingShard
from moco_accel.sources.tile_facts import TileFacts

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
    Raises UserError when there is nothing to read, nothing is kept, or `out_dir` holds something else.
    """
    started = time.monotonic()
    if workers is not None and workers < 1:
        raise UserError(f"--workers={workers} must be at least 1; --workers 1 takes the least memory")
    options = options or Options()
    hear = on_progress or (lambda stage, done, total, tiles: None)
    journal = Journal(out_dir, asked(source, options))
    if not overwrite and (finished := journal.finished()):
        try:
            return _built(*finished, out_dir, found_complete=True)
        except (KeyError, TypeError, ValueError):
            raise journal.damaged(REPORT_FILE) from None
    check_out(out_dir, overwrite or journal.folder.is_dir())
    tally = journal.begin(overwrite)
    try:
        workers = workers or _cores()
        plan = make_plan(source, options, workers, lambda done, total: hear("scenes", done, total, 0))
        tally = journal.agree(plan.decided(), tally, overwrite)
        resumed = tally.tiles
        report, facts = _write(plan, journal, tally, workers, hear)
    except UserError:
        if not tally.shards:
            with contextlib.suppress(OSError):  # what went wrong is told already
                journal.remove()
        raise
    finally:
        journal.close()
    return _built(report, facts, out_dir, num_resumed=resumed, seconds=time.monotonic() - started)


def _write(
    plan: Plan, journal: Journal, tally: Tally, workers: int, hear: OnProgress
) -> tuple[dict[str, Any], TileFacts]:
    """All shards under their names, and what stands beside them."""
    try:
        if not tally.done:
            _grow(plan, journal, tally, workers, hear)
        report = report_of(plan, tally)
        check_kept(plan, tally, report)
        assert tally.counter
        facts = replace(plan.facts, statistics=tally.counter.statistics())
        journal.publish(tally.shards, report, facts.to_json())
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        hint = "there is room" if error.errno == errno.ENOSPC else "that is mended"
        raise UserError(
            f"OUT={str(journal.out)!r} cannot be written ({why}); whole shards stay ({tally.shards}), and the same "
            f"command goes on from there once {hint}"
        ) from None
    return report, facts


def _grow(plan: Plan, journal: Journal, tally: Tally, workers: int, hear: OnProgress) -> None:
    """Cut the units that are left and write them, a shard at a time."""
    total, schema = plan.num_windows, _schema(plan)
    compression = "snappy" if is_picture(len(plan.facts.bands), plan.facts.dtype) else "zstd"
    first_units = list(itertools.islice(plan.units(), tally.next_unit, tally.next_unit + workers))
    start = partial(Cutter, plan.source, plan.options, plan.classes, plan.facts.nodata)
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
        columns[PAIR_COLUMN] = image
    if plan.classes.names:
        columns["label"] = datasets.ClassLabel(names=list(plan.classes.names))
    columns |= {"path": datasets.Value("string"), "scene": datasets.Value("string")}
    columns |= {"row": datasets.Value("int32"), "col": datasets.Value("int32"), "crs": datasets.Value("string")}
    columns["bounds"] = datasets.List(datasets.Value("float64"))
    schema = datasets.Features(columns).arrow_schema
    return schema.with_metadata({**schema.metadata, **facts.schema_metadata()})


def _built(report: dict[str, Any], facts: TileFacts, out_dir: Path, **more: Any) -> Built:
    num_bytes = sum(path.stat().st_size for path in out_dir.glob("tiles-*-of-*.parquet"))
    fields = {name: value for name, value in report.items() if name != "asked"}
    fields["left_out"] = [(path, reason) for path, reason in report["left_out"]]
    return Built(facts=facts, num_bytes=num_bytes, **fields, **more)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
