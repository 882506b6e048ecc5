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

Line = tuple[str, RenderableType]


@dataclass
class RunState:
    """What the panel shows.

    Attributes:
        total_steps: Optimizer steps of the whole run.
        first_step: Steps done before this process started.
        elapsed_seconds: Seconds since this process started.
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
    on_gpu: bool = False
    row: Row | None = None
    evaluation: Row | None = None
    health: Health = field(default_factory=lambda: Health("healthy", "no step has been logged yet"))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.total_steps // self.recipe.schedule.epochs

    @property
    def remaining_seconds(self) -> float | None:
        """Estimate from the mean speed of this process; None before its first step."""
        done = self.steps_done - self.first_step
        return (self.total_steps - self.steps_done) * self.elapsed_seconds / done if done > 0 else None


def render_panel(state: RunState) -> Constrain:
    """Return the panel of a run."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, content in _panel_lines(state):
        table.add_row(name, content)
    batch = state.recipe.batch.global_batch_size
    title = f"[bold]{state.recipe.encoder.name}[/] · global batch {batch:,} · {escape(state.run)}"
    return Constrain(Panel(table, title=title, title_align="left", border_style=STYLES[state.health.level]), _MAX_WIDTH)


def _panel_lines(state: RunState) -> list[Line]:
    epoch, step_in_epoch = divmod(state.steps_done, state.steps_per_epoch)
    epochs = state.recipe.schedule.epochs
    if epoch == epochs:
        epoch, step_in_epoch = epochs - 1, state.steps_per_epoch
    left = "" if state.remaining_seconds is None else f"{_format_time(state.remaining_seconds)} left, "
    lines: list[Line] = [
        ("run", _bar(state.steps_done, state.total_steps, f"step {state.steps_done:,} of {state.total_steps:,}")),
        ("", f"{left}{_format_time(state.elapsed_seconds)} elapsed"),
        ("epoch", _bar(step_in_epoch, state.steps_per_epoch, f"{epoch + 1} of {epochs}")),
    ]
    if state.row is not None:
        lines += _metric_lines(state, state.row)
    if state.evaluation is not None:
        lines += _evaluation_lines(state.evaluation)
    return [*lines, ("health", Text(f"● {state.health.text}", style=STYLES[state.health.level]))]


def _metric_lines(state: RunState, row: Row) -> list[Line]:
    chance = state.recipe.chance_loss
    lines: list[Line] = [
        ("loss", f"[bold]{row['loss']:.3f}[/]  chance {chance:.2f}   feature std {row['feature_std']:.2f}"),
        ("schedule", f"lr {row['lr']:.2e}   momentum coefficient {row['momentum_coefficient']:.4f}"),
        ("speed", f"[bold]{row['tiles_per_second']:,.0f}[/] tiles/s   {row['data_wait_share']:.1%} waiting for data"),
        ("memory", _memory(state, row)),
    ]
    warnings = _warnings(row)
    return [*lines, ("", f"[yellow]{', '.join(warnings)}[/]")] if warnings else lines


def _warnings(row: Row) -> list[str]:
    skipped = [f"{row['skipped_steps']} steps skipped (fp16 overflow)"] if row["skipped_steps"] else []
    return skipped + ([f"{row['damaged_tiles']} damaged tiles replaced"] if row["damaged_tiles"] else [])


def _memory(state: RunState, row: Row) -> RenderableType:
    peak, planned = row["peak_memory_mib"], row["planned_memory_mib"]
    if not state.on_gpu:
        return f"peak {peak:,} MiB of RAM"
    text = f"peak {peak:,} MiB" + (f", planned {planned:,}" if planned else "")
    if state.card_mib is None:
        return text
    return _bar(peak, state.card_mib, f"{text}, GPU {state.card_mib:,}")


def _evaluation_lines(evaluation: Row) -> list[Line]:
    epoch = evaluation.get("knn_epoch", evaluation["epoch"])
    when = f"   [dim]after epoch {epoch:g}, {evaluation['time_share']:.1%} of the time[/]"
    features = (
        f"RankMe {evaluation['rank_me']:.0f} of {evaluation['rank_of']}   alignment {evaluation['alignment']:.2f}   "
        f"uniformity {evaluation['uniformity']:.2f}"
    )
    if "knn_top1" not in evaluation:
        return [("features", f"{features}{when}")]
    return [("kNN", f"{format_knn(evaluation).removeprefix('kNN ')}{when}"), ("features", features)]


def _bar(done: float, total: float, text: str) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_row(ProgressBar(total=total, completed=min(done, total), width=_BAR_WIDTH), text)
    return grid


def _format_time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def format_row(state: RunState, row: Row) -> str:
    """Return a row of metrics.jsonl as one console line."""
    kind, planned = ("VRAM" if state.on_gpu else "RAM"), row["planned_memory_mib"]
    return (
        f"step {row['step']}/{state.total_steps}  loss [bold]{row['loss']:.3f}[/] (chance "
        f"{state.recipe.chance_loss:.2f})  lr {row['lr']:.2e}  m {row['momentum_coefficient']:.4f}  "
        f"{row['tiles_per_second']:.0f} tiles/s  {row['data_wait_share']:.0%} data wait  std {row['feature_std']:.2f}  "
        f"{kind} {row['peak_memory_mib']} MiB"
        + (f" (plan {planned})" if planned else "")
        + "".join(f"  [yellow]{warning}[/]" for warning in _warnings(row))
    )


class TrainingConsole:
    """Shows a `RunState` as it changes. Use it as a context, on rank 0."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._live = Live(
            get_renderable=lambda: render_panel(state),
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

    def print_row(self, row: Row) -> None:
        """Print a row of metrics.jsonl where there is no panel."""
        if not console.is_terminal:
            console.print(format_row(self._state, row), soft_wrap=True)

    def print_evaluation(self, evaluation: Row) -> None:
        """Print a row of evaluations.jsonl where there is no panel."""
        if console.is_terminal:
            return
        knn = f"{format_knn(evaluation)}, " if "knn_top1" in evaluation else ""
        console.print(
            f"after epoch {evaluation['epoch']:g}: {knn}RankMe {evaluation['rank_me']:.0f} of "
            f"{evaluation['rank_of']}, alignment {evaluation['alignment']:.2f}, uniformity "
            f"{evaluation['uniformity']:.2f} ({evaluation['time_share']:.1%} of the time)",
            soft_wrap=True,
        )
