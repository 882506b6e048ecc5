"""What a run shows while it goes on: a panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from rich.console import RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from moco_accel.common.console import console
from moco_accel.recipe.schema import Recipe
from moco_accel.training.run_health import STYLES, Verdict, knn_text

_BAR, _WIDEST = 30, 110
_REFRESHES_PER_SECOND = 2

Row = Mapping[str, Any]


@dataclass
class Shown:
    """What the panel is of. `row` and `examined`: the last of metrics.jsonl and of evaluations.jsonl."""

    recipe: Recipe
    run: str
    total_steps: int
    first_step: int = 0
    steps_done: int = 0
    elapsed_seconds: float = 0.0
    card_mib: int | None = None
    on_gpu: bool = False
    row: Row | None = None
    examined: Row | None = None
    verdict: Verdict = field(default_factory=lambda: Verdict("well", "no step has been logged yet"))

    @property
    def steps_an_epoch(self) -> int:
        return self.total_steps // self.recipe.schedule.epochs

    @property
    def left_seconds(self) -> float | None:
        """At the speed of this process's steps so far."""
        done = self.steps_done - self.first_step
        return (self.total_steps - self.steps_done) * self.elapsed_seconds / done if done > 0 else None


def panel(shown: Shown) -> Constrain:
    """All that is known of a run, in one frame."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, content in _lines(shown):
        table.add_row(name, content)
    batch = shown.recipe.batch.global_batch_size
    title = f"[bold]{shown.recipe.encoder.name}[/] · global batch {batch:,} · {escape(shown.run)}"
    return Constrain(Panel(table, title=title, title_align="left", border_style=STYLES[shown.verdict.level]), _WIDEST)


def _lines(shown: Shown) -> list[tuple[str, RenderableType]]:
    epoch, within = divmod(shown.steps_done, shown.steps_an_epoch)
    epochs = shown.recipe.schedule.epochs
    if epoch == epochs:
        epoch, within = epochs - 1, shown.steps_an_epoch
    left = "" if shown.left_seconds is None else f"{_clock(shown.left_seconds)} left, "
    lines: list[tuple[str, RenderableType]] = [
        ("run", _bar(shown.steps_done, shown.total_steps, f"step {shown.steps_done:,} of {shown.total_steps:,}")),
        ("", f"{left}{_clock(shown.elapsed_seconds)} gone"),
        ("epoch", _bar(within, shown.steps_an_epoch, f"{epoch + 1} of {epochs}")),
    ]
    if shown.row is not None:
        lines += _logged(shown, shown.row)
    if shown.examined is not None:
        lines += _examined(shown.examined)
    health = Text(f"● {shown.verdict.text}", style=STYLES[shown.verdict.level])
    return [*lines, ("health", health)]


def _logged(shown: Shown, row: Row) -> list[tuple[str, RenderableType]]:
    chance = shown.recipe.chance_loss
    lines: list[tuple[str, RenderableType]] = [
        ("loss", f"[bold]{row['loss']:.3f}[/]  chance {chance:.2f}   features' spread {row['feature_std']:.2f}"),
        ("schedule", f"lr {row['lr']:.2e}   momentum coefficient {row['momentum_coefficient']:.4f}"),
        ("speed", f"[bold]{row['tiles_per_second']:,.0f}[/] tiles/s   {row['data_wait_share']:.1%} waiting for data"),
        ("memory", _memory(shown, row)),
    ]
    asides = []
    if row["skipped_steps"]:
        asides.append(f"{row['skipped_steps']} steps skipped (fp16 overflow)")
    if row["damaged_tiles"]:
        asides.append(f"{row['damaged_tiles']} damaged tiles replaced")
    return [*lines, ("", f"[yellow]{', '.join(asides)}[/]")] if asides else lines


def _memory(shown: Shown, row: Row) -> RenderableType:
    measured, planned = row["peak_memory_mib"], row["planned_memory_mib"]
    if not shown.on_gpu:
        return f"{measured:,} MiB of RAM at most"
    words = f"peak {measured:,} MiB" + (f", planned {planned:,}" if planned else "")
    if shown.card_mib is None:
        return words
    return _bar(measured, shown.card_mib, f"{words}, card {shown.card_mib:,}")


def _examined(examined: Row) -> list[tuple[str, RenderableType]]:
    when = f"after epoch {examined.get('knn_epoch', examined['epoch']):g}, {examined['time_share']:.1%} of the time"
    lines: list[tuple[str, RenderableType]] = []
    if "knn_top1" in examined:
        lines.append(("kNN", f"{knn_text(examined).removeprefix('kNN ')}   [dim]{when}[/]"))
    words = (
        f"RankMe {examined['rank_me']:.0f} of {examined['rank_of']}   alignment {examined['alignment']:.2f}   "
        f"uniformity {examined['uniformity']:.2f}"
    )
    return [*lines, ("features", words if lines else f"{words}   [dim]{when}[/]")]


def _bar(done: float, total: float, words: str) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_row(ProgressBar(total=total, completed=min(done, total), width=_BAR), words)
    return grid


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def line(shown: Shown, row: Row) -> str:
    """A row of the log where no terminal shows the panel."""
    kind, plan = ("VRAM" if shown.on_gpu else "RAM"), row["planned_memory_mib"]
    return (
        f"step {row['step']}/{shown.total_steps}  loss [bold]{row['loss']:.3f}[/] (chance "
        f"{shown.recipe.chance_loss:.2f})  lr {row['lr']:.2e}  m {row['momentum_coefficient']:.4f}  "
        f"{row['tiles_per_second']:.0f} tiles/s  {row['data_wait_share']:.0%} data wait  std {row['feature_std']:.2f}  "
        f"{kind} {row['peak_memory_mib']} MiB"
        + (f" (plan {plan})" if plan else "")
        + (f"  [yellow]{row['skipped_steps']} steps skipped (fp16 overflow)[/]" if row["skipped_steps"] else "")
        + (f"  [yellow]{row['damaged_tiles']} damaged tiles replaced[/]" if row["damaged_tiles"] else "")
    )


class TrainingConsole:
    """Shows `shown` as it changes; use it as a context, on the process that prints."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._live = Live(
            get_renderable=lambda: panel(shown),
            console=console,
            refresh_per_second=_REFRESHES_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> TrainingConsole:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say_row(self, row: Row) -> None:
        if not console.is_terminal:
            console.print(line(self._shown, row), soft_wrap=True)

    def say_examined(self, examined: Row) -> None:
        if console.is_terminal:
            return
        what = f"{knn_text(examined)}, " if "knn_top1" in examined else ""
        console.print(
            f"after epoch {examined['epoch']:g}: {what}RankMe {examined['rank_me']:.0f} of {examined['rank_of']}, "
            f"alignment {examined['alignment']:.2f}, uniformity {examined['uniformity']:.2f} "
            f"({examined['time_share']:.1%} of the time)",
            soft_wrap=True,
        )
