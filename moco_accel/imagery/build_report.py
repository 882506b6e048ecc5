"""Print the progress and the result of `moco-data build`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape
from rich.progress import TaskID, TextColumn
from rich.table import Column, Table

from moco_accel.common.console import console, progress_bar
from moco_accel.imagery.build import BuildResult, ProgressCallback
from moco_accel.imagery.tile_cutter import PAIR_COLUMN
from moco_accel.recipe.overrides import override_argument

_MAX_LISTED = 10


@contextmanager
def build_progress() -> Iterator[ProgressCallback]:
    """Show a progress bar for each stage of a build; yield the callback that updates them."""
    tasks: dict[str, tuple[TaskID, int]] = {}  # with the number of tiles of an earlier run
    with progress_bar(TextColumn("{task.fields[speed]}")) as progress:

        def report_progress(stage: str, done: int, total: int, tiles: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, completed=done, speed=""), tiles
            task, before = tasks[stage]
            seconds = max(progress.tasks[task].elapsed or 0, 1e-3)
            speed = f"{(tiles - before) / seconds:,.0f} tiles/s" if tiles > before else ""
            progress.update(task, completed=done, speed=speed)

        yield report_progress


def print_build_result(result: BuildResult, out: Path, has_pairs: bool) -> None:
    """Print counts, band statistics, notes, files left out, and the options that train on the tiles."""
    if result.found_complete:
        line = f"{out} is complete: these tiles were built before (--overwrite rebuilds them)"
        console.print(escape(line), soft_wrap=True)
    console.print(_counts(result))
    console.print(_bands(result))
    if result.tiles_per_class:
        table = Table("class", Column("tiles", justify="right"), title="tiles per class")
        for name, count in result.tiles_per_class.items():
            table.add_row(escape(name), f"{count:,}")
        console.print(table)
    for note in result.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)
    if result.num_left_out:
        console.print(f"[yellow]left out ({result.num_left_out:,}):[/]")
    for path, reason in result.left_out[:_MAX_LISTED]:
        console.print(f"  {escape(path)}: {escape(reason)}", soft_wrap=True)
    if result.num_left_out > _MAX_LISTED:
        console.print(f"  … and {result.num_left_out - _MAX_LISTED:,} more")
    console.print(_training_options(result, out, has_pairs), soft_wrap=True)


def _counts(result: BuildResult) -> Table:
    table = Table("", Column(justify="right"), show_header=False)
    table.add_row("scenes", f"{result.num_scenes:,}")
    table.add_row("tiles kept", f"[bold]{result.num_tiles:,}")
    if result.num_resumed:
        table.add_row("  from an earlier run", f"{result.num_resumed:,}")
    for reason, count in result.skipped.items():
        table.add_row(f"skipped: {escape(reason)}", f"{count:,}")
    if result.num_left_out:
        table.add_row("images left out", f"{result.num_left_out:,}")
    table.add_row("stored as", f"{len(result.metadata.bands)} × {result.metadata.dtype}")
    table.add_row("sensor", result.metadata.sensor or "unknown")
    table.add_row("shards", f"{result.num_shards:,}, {result.num_bytes / 1e6:,.1f} MB")
    if result.seconds:
        new_tiles = result.num_tiles - result.num_resumed
        table.add_row("seconds", f"{result.seconds:,.1f} ({new_tiles / result.seconds:,.0f} tiles/s)")
    return table


def _bands(result: BuildResult) -> Table:
    statistics = result.metadata.statistics
    assert statistics
    numbers = (Column(heading, justify="right") for heading in ("mean", "std", "min", "max"))
    table = Table("band", *numbers, title="bands, over pixels with data of the tiles kept")
    values = zip(statistics.mean, statistics.std, statistics.minimum, statistics.maximum, strict=True)
    for name, row in zip(result.metadata.bands, values, strict=True):
        table.add_row(escape(name), *(f"{value:,.5g}" if abs(value) < 1e4 else f"{value:,.0f}" for value in row))
    return table


def _training_options(result: BuildResult, out: Path, has_pairs: bool) -> str:
    fields: list[tuple[str, object]] = [("data.source", str(out)), ("encoder.bands", len(result.metadata.bands))]
    if result.metadata.dtype != "uint8":
        fields.append(("data.scaling", "percentiles"))
    if has_pairs:
        fields += [("data.pair_column", PAIR_COLUMN), ("augment.preset", "seasons")]
    arguments = [f"--set {override_argument(name, value)}" for name, value in fields]
    return f"To train on these tiles, add to --recipe: [bold]{escape(' '.join(arguments))}[/]"
