"""Build shards of tiles from scenes: in parallel, in constant memory, resumable after a kill."""

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
from moco_accel.imagery.build_summary import check_tiles_kept, summarize_build
from moco_accel.imagery.journal import MAX_LISTED, SUMMARY_FILE, BuildJournal
from moco_accel.imagery.options import BuildOptions, build_identity, check_output_folder
from moco_accel.imagery.plan import BuildPlan, make_plan
from moco_accel.imagery.tile_cutter import PAIR_COLUMN, BuildProgress, CutTiles, TileCutter, is_stored_as_picture
from moco_accel.imagery.windows import scene_windows
from moco_accel.imagery.workers import map_in_order
from moco_accel.sources.shard_writer import ShardWriter
from moco_accel.sources.tile_metadata import TileMetadata

ProgressCallback = Callable[[str, int, int, int], None]


@dataclass(frozen=True)
class BuildResult:
    """Result of a build.

    Attributes:
        skipped: Number of skipped windows by reason.
        left_out: (file, reason) of the first thousand files that were not cut.
        found_complete: True if the tiles were built before.
        num_resumed: Tiles of an earlier, interrupted build.
    """

    metadata: TileMetadata
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
    options: BuildOptions,
    workers: int | None,
    overwrite: bool,
    on_progress: ProgressCallback,
) -> BuildResult:
    """Cut scenes larger than the tile size into windows every `options.step` pixels; keep smaller ones whole.

    Pixels at the right and lower edge that fill no window are not stored. Columns of the shards: image
    (`datasets.Image` for one or three bands of 8 bits, otherwise .npy bytes [bands, height, width]), image_pair with
    `pair_with`, label with either kind of labels, path (relative to `source`), scene, row and col in pixels, crs, and
    bounds (left, bottom, right, top; null without a CRS).

    Args:
        workers: Number of processes; None: one for each core.
        on_progress: Called as `on_progress(stage, done, total, tiles)`. Stages: `scenes` read, then `windows` cut.

    Raises:
        UserError: If there is nothing to read, no tile is kept, or `out_dir` holds other files.
    """
    started = time.monotonic()
    if workers is not None and workers < 1:
        raise UserError(f"--workers={workers} must be at least 1; --workers 1 needs the least memory")
    journal = BuildJournal(out_dir, build_identity(source, options))
    if not overwrite and (finished := journal.finished()):
        with journal.damage_as_user_error(SUMMARY_FILE):
            return _result(*finished, out_dir, found_complete=True)
    check_output_folder(out_dir, overwrite or journal.folder.is_dir())
    has_affinity = hasattr(os, "sched_getaffinity")  # the cores that this process may use
    workers = workers or (len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1)
    with contextlib.closing(journal):
        progress = journal.resume_or_start(overwrite)
        try:
            begun = journal.begun(progress)
            report = partial(_report_scenes, on_progress)
            plan = make_plan(source, options, workers, report, begun, progress.next_unit)
            if begun is None:
                progress = journal.check_decisions(plan.decisions(), plan.begun(), progress, overwrite)
            num_resumed = progress.tiles
            summary, metadata = _write_all(plan, journal, progress, workers, on_progress)
        except UserError:
            if not progress.shards:
                with contextlib.suppress(OSError):  # the error above is the one to report
                    journal.remove()
            raise
    return _result(summary, metadata, out_dir, num_resumed=num_resumed, seconds=time.monotonic() - started)


def _report_scenes(on_progress: ProgressCallback, done: int, total: int) -> None:
    on_progress("scenes", done, total, 0)


def _write_all(
    plan: BuildPlan, journal: BuildJournal, progress: BuildProgress, workers: int, on_progress: ProgressCallback
) -> tuple[dict[str, Any], TileMetadata]:
    """Write shards, build.json and tiles.json; return the content of the latter two."""
    try:
        if not progress.done:
            _write_shards(plan, journal, progress, workers, on_progress)
        summary = summarize_build(plan, progress)
        check_tiles_kept(plan, progress, summary)
        assert progress.counter
        metadata = replace(plan.metadata, statistics=progress.counter.statistics())
        journal.publish(progress.shards, summary, metadata.to_json())
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        remedy = "there is free space" if error.errno == errno.ENOSPC else "this is fixed"
        raise UserError(
            f"OUT={str(journal.out)!r} cannot be written ({why}); complete shards are kept ({progress.shards}), and "
            f"the same command resumes from them once {remedy}"
        ) from None
    return summary, metadata


def _write_shards(
    plan: BuildPlan, journal: BuildJournal, progress: BuildProgress, workers: int, on_progress: ProgressCallback
) -> None:
    """Cut the remaining units and write them, one shard at a time."""
    total, schema = sum(len(scene_windows(layout, plan.options)) for layout in plan.layouts), _arrow_schema(plan)
    is_picture = is_stored_as_picture(len(plan.metadata.bands), plan.metadata.dtype)
    cutter = TileCutter(plan.source, plan.options, plan.classes, plan.metadata.nodata)
    first_units = itertools.islice(plan.units(), progress.next_unit, progress.next_unit + workers)
    num_workers = sum(1 for _ in first_units) or 1  # at most one for each unit
    units = itertools.islice(plan.units(), progress.next_unit, None)
    shard: ShardWriter | None = None
    on_progress("windows", progress.windows, total, progress.tiles)
    try:
        for cut in map_in_order(cutter, units, num_workers):
            _count(progress, cut, plan)
            if cut.rows:
                compression = "snappy" if is_picture else "zstd"
                shard = shard or ShardWriter(journal.shard(progress.shards), schema, compression)
                shard.write(cut.rows)
            on_progress("windows", progress.windows, total, progress.tiles)
            if shard and shard.next_would_exceed(plan.options.max_shard_mb << 20):
                _finish_shard(shard, journal, progress)
                shard = None
        if shard:
            _finish_shard(shard, journal, progress)
            shard = None
        progress.done = True
        journal.save(progress)
    finally:
        if shard:
            shard.discard()


def _finish_shard(shard: ShardWriter, journal: BuildJournal, progress: BuildProgress) -> None:
    shard.close()
    progress.shards += 1
    journal.save(progress)


def _count(progress: BuildProgress, cut: CutTiles, plan: BuildPlan) -> None:
    progress.next_unit += 1
    progress.scenes += cut.scenes
    progress.windows += cut.windows
    progress.tiles += len(cut.rows)
    progress.skipped.update(cut.skipped)
    progress.num_left_out += len(cut.left_out)
    progress.left_out += cut.left_out[: MAX_LISTED - len(progress.left_out)]
    if plan.classes.names:
        progress.per_class.update(plan.classes.names[row["label"]] for row in cut.rows)
    if progress.counter:
        progress.counter.merge(cut.counter)
    progress.counter = progress.counter or cut.counter


def _arrow_schema(plan: BuildPlan) -> Any:
    metadata = plan.metadata
    is_picture = is_stored_as_picture(len(metadata.bands), metadata.dtype)
    image = datasets.Image() if is_picture else datasets.Value("binary")
    columns: dict[str, Any] = {"image": image}
    if plan.options.pair_with:
        columns[PAIR_COLUMN] = image
    if plan.classes.names:
        columns["label"] = datasets.ClassLabel(names=list(plan.classes.names))
    columns |= {"path": datasets.Value("string"), "scene": datasets.Value("string")}
    columns |= {"row": datasets.Value("int32"), "col": datasets.Value("int32"), "crs": datasets.Value("string")}
    columns["bounds"] = datasets.List(datasets.Value("float64"))
    schema = datasets.Features(columns).arrow_schema
    return schema.with_metadata({**schema.metadata, **metadata.schema_metadata()})


def _result(summary: dict[str, Any], metadata: TileMetadata, out_dir: Path, **more: Any) -> BuildResult:
    num_bytes = sum(path.stat().st_size for path in out_dir.glob("tiles-*-of-*.parquet"))
    fields = {name: value for name, value in summary.items() if name != "asked"}
    fields["left_out"] = [(path, reason) for path, reason in summary["left_out"]]
    return BuildResult(metadata=metadata, num_bytes=num_bytes, **fields, **more)
