"""Console output of a run: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

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
from moco_accel.training.run_health import STYLES, Health, Row, format_knn

_BAR_WIDTH, _MAX_WIDTH = 30, 110
_REFRESHES_PER_SECOND = 2


@dataclass
class RunState:
    """What the panel shows.

    Attributes:
        total_steps: Optimizer steps of the whole run.
        first_step: Steps done before this process started.
        elapsed_seconds: Seconds that the run has taken, including its earlier processes.
        seconds_before: Seconds that the run had taken before this process started.
        card_mib: Total memory of the GPU; None on a CPU.
        row: Last row of metrics.jsonl.
        evaluation: Last figures of evaluations.jsonl.
    """

    recipe: Recipe
    run: str
    total_steps: int
    first_step: int = 0
    steps_done: int = 0
    elapsed_seconds: float = 0.0
    card_mib: int | None = None
    row: Row | None = None
    evaluation: Row | None = None
    health: Health = field(default_factory=lambda: Health("healthy", "no step has been logged yet"))
    seconds_before: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.total_steps // self.recipe.schedule.epochs

    @property
    def remaining_seconds(self) -> float | None:
        """Estimate from the mean speed of this process; None before its first step."""
        done = self.steps_done - self.first_step
        seconds = self.elapsed_seconds - self.seconds_before
        return (self.total_steps - self.steps_done) * seconds / done if done > 0 else None


def render_panel(state: RunState) -> Constrain:
    """Return the panel of a run."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    _add_progress(table, state)
    if state.row is not None:
        _add_metrics(table, state, state.row)
    if state.evaluation is not None:
        _add_evaluation(table, state.evaluation)
    style = STYLES[state.health.level]
    table.add_row("health", Text(f"● {state.health.text}", style=style))
    batch = state.recipe.batch.global_batch_size
    title = f"[bold]{state.recipe.encoder.name}[/] · global batch {batch:,} · {escape(state.run)}"
    return Constrain(Panel(table, title=title, title_align="left", border_style=style), _MAX_WIDTH)


def _add_progress(table: Table, state: RunState) -> None:
    epoch, step_in_epoch = divmod(state.steps_done, state.steps_per_epoch)
    epochs = state.recipe.schedule.epochs
    if epoch == epochs:
        epoch, step_in_epoch = epochs - 1, state.steps_per_epoch
    left = "" if state.remaining_seconds is None else f"{_format_time(state.remaining_seconds)} left, "
    steps = f"step {state.steps_done:,} of {state.total_steps:,}"
    table.add_row("run", _bar(state.steps_done, state.total_steps, steps))
    table.add_row("", f"{left}{_format_time(state.elapsed_seconds)} elapsed")
    table.add_row("epoch", _bar(step_in_epoch, state.steps_per_epoch, f"{epoch + 1} of {epochs}"))


def _add_metrics(table: Table, state: RunState, row: Row) -> None:
    chance, waited = state.recipe.chance_loss, f"{row['data_wait_share']:.1%} waiting for data"
    table.add_row("loss", f"[bold]{row['loss']:.3f}[/]  chance {chance:.2f}   feature std {row['feature_std']:.2f}")
    table.add_row("schedule", f"lr {row['lr']:.2e}   momentum coefficient {row['momentum_coefficient']:.4f}")
    table.add_row("speed", f"[bold]{row['tiles_per_second']:,.0f}[/] tiles/s   {waited}")
    table.add_row("memory", _memory(state, row))
    if warnings := _warnings(row):
        table.add_row("", f"[yellow]{', '.join(warnings)}[/]")


def _warnings(row: Row) -> list[str]:
    skipped = [f"{row['skipped_steps']} steps skipped (fp16 overflow)"] if row["skipped_steps"] else []
    return skipped + ([f"{row['damaged_tiles']} damaged tiles replaced"] if row["damaged_tiles"] else [])


def _memory(state: RunState, row: Row) -> RenderableType:
    peak, planned = row["peak_memory_mib"], row["planned_memory_mib"]
    if state.card_mib is None:
        return f"peak {peak:,} MiB of RAM"
    text = f"peak {peak:,} MiB" + (f", planned {planned:,}" if planned else "")
    return _bar(peak, state.card_mib, f"{text}, GPU {state.card_mib:,}")


def _add_evaluation(table: Table, evaluation: Row) -> None:
    epoch = evaluation.get("knn_epoch", evaluation["epoch"])
    when = f"   [dim]after epoch {epoch:g}, {evaluation['time_share']:.1%} of the time[/]"
    if "knn_top1" in evaluation:
        table.add_row("kNN", f"{format_knn(evaluation).removeprefix('kNN ')}{when}")
        when = ""
    table.add_row("features", f"{_format_features(evaluation, '   ')}{when}")


def _format_features(evaluation: Row, separator: str) -> str:
    rank = f"RankMe {evaluation['rank_me']:.0f} of {evaluation['rank_of']}"
    return (
        f"{rank}{separator}alignment {evaluation['alignment']:.2f}{separator}uniformity {evaluation['uniformity']:.2f}"
    )


def _bar(done: float, total: float, text: str) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_row(ProgressBar(total=total, completed=min(done, total), width=_BAR_WIDTH), text)
    return grid


def _format_time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def format_row(state: RunState, row: Row) -> str:
    """Return a row of metrics.jsonl as one console line."""
    kind, planned = ("VRAM" if state.card_mib else "RAM"), row["planned_memory_mib"]
    return (
        f"step {row['step']}/{state.total_steps}  loss [bold]{row['loss']:.3f}[/] (chance "
        f"{state.recipe.chance_loss:.2f})  lr {row['lr']:.2e}  m {row['momentum_coefficient']:.4f}  "
        f"{row['tiles_per_second']:.0f} tiles/s  {row['data_wait_share']:.0%} data wait  std {row['feature_std']:.2f}  "
        f"{kind} {row['peak_memory_mib']} MiB"
        + (f" (plan {planned})" if planned else "")
        + "".join(f"  [yellow]{warning}[/]" for warning in _warnings(row))
    )


def live_panel(state: RunState) -> Live:
    """Return the panel of a run for a terminal; once started, it shows `state` as it changes."""
    return Live(
        get_renderable=lambda: render_panel(state),
        console=console,
        refresh_per_second=_REFRESHES_PER_SECOND,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def format_evaluation(evaluation: Row) -> str:
    """Return a row of evaluations.jsonl as one console line."""
    knn = f"{format_knn(evaluation)}, " if "knn_top1" in evaluation else ""
    return (
        f"after epoch {evaluation['epoch']:g}: {knn}{_format_features(evaluation, ', ')} "
        f"({evaluation['time_share']:.1%} of the time)"
    )


def print_without_panel(line: str) -> None:
    """Print a line of rich markup where there is no panel."""
    if not console.is_terminal:
        console.print(line, soft_wrap=True)
