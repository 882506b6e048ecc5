"""What `moco-data build` shows: a bar while it works, a summary when it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from moco_accel.common.console import console
from moco_accel.imagery.build import Built, OnProgress
from moco_accel.imagery.cutting import PAIR_COLUMN
from moco_accel.recipe.overrides import set_word

_MAX_LISTED = 10


@contextmanager
def build_progress() -> Iterator[OnProgress]:
    """A bar for each stage of a build: scenes looked at, windows cut, with tiles kept per second."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    tasks = {}
    started: dict[str, tuple[float, int]] = {}

    def hear(stage: str, done: int, total: int, tiles: int) -> None:
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=total, completed=done, speed="")
            started[stage] = time.monotonic(), tiles
        since, before = started[stage]
        speed = f"{(tiles - before) / max(time.monotonic() - since, 1e-3):,.0f} tiles/s" if tiles > before else ""
        progress.update(tasks[stage], completed=done, speed=speed)

    with progress:
        yield hear


def print_built(built: Built, out: Path, has_pairs: bool) -> None:
    """The summary of a build."""
    if built.found_complete:
        console.print(
            f"{escape(str(out))} is complete: these tiles were built before (--overwrite builds them anew)",
            soft_wrap=True,
        )
    console.print(_counts(built))
    console.print(_bands(built))
    if built.tiles_per_class:
        table = Table(title="tiles per class")
        table.add_column("class")
        table.add_column("tiles", justify="right")
        for name, count in built.tiles_per_class.items():
            table.add_row(escape(name), f"{count:,}")
        console.print(table)
    for note in built.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)
    _print_left_out(built)
    console.print(_next_step(built, out, has_pairs), soft_wrap=True)


def _counts(built: Built) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("scenes", f"{built.num_scenes:,}")
    table.add_row("tiles kept", f"[bold]{built.num_tiles:,}")
    if built.num_resumed:
        table.add_row("  of an earlier run", f"{built.num_resumed:,}")
    for reason, count in built.skipped.items():
        table.add_row(f"skipped: {escape(reason)}", f"{count:,}")
    if built.num_left_out:
        table.add_row("images left out", f"{built.num_left_out:,}")
    table.add_row("stored as", f"{len(built.facts.bands)} × {built.facts.dtype}")
    table.add_row("sensor", built.facts.sensor or "not known")
    table.add_row("shards", f"{built.num_shards:,}, {built.num_bytes / 1e6:,.1f} MB")
    if built.seconds:
        fresh = built.num_tiles - built.num_resumed
        table.add_row("seconds", f"{built.seconds:,.1f} ({fresh / built.seconds:,.0f} tiles/s)")
    return table


def _bands(built: Built) -> Table:
    statistics = built.facts.statistics
    assert statistics
    table = Table(title="bands, over pixels with data of the tiles kept")
    table.add_column("band")
    for heading in ("mean", "std", "min", "max"):
        table.add_column(heading, justify="right")
    numbers = zip(statistics.mean, statistics.std, statistics.minimum, statistics.maximum, strict=True)
    for name, row in zip(built.facts.bands, numbers, strict=True):
        table.add_row(escape(name), *(f"{number:,.5g}" if abs(number) < 1e4 else f"{number:,.0f}" for number in row))
    return table


def _print_left_out(built: Built) -> None:
    if not built.num_left_out:
        return
    console.print(f"[yellow]left out ({built.num_left_out:,}):[/]")
    for path, reason in built.left_out[:_MAX_LISTED]:
        console.print(f"  {escape(path)}: {escape(reason)}", soft_wrap=True)
    if built.num_left_out > _MAX_LISTED:
        console.print(f"  … and {built.num_left_out - _MAX_LISTED:,} more")


def _next_step(built: Built, out: Path, has_pairs: bool) -> str:
    """What a recipe needs to train on these tiles, for a command line."""
    fields: list[tuple[str, object]] = [("data.source", str(out)), ("encoder.bands", len(built.facts.bands))]
    if built.facts.dtype != "uint8":
        fields.append(("data.scaling", "percentiles"))
    if has_pairs:
        fields += [("data.pair_column", PAIR_COLUMN), ("augment.preset", "seasons")]
    words = [f"--set {set_word(name, value)}" for name, value in fields]
    return f"To train on them, beside --recipe: [bold]{escape(' '.join(words))}[/]"
