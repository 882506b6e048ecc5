"""A run's curves in one picture: loss against chance, kNN against baselines, schedule, speed, memory against plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from moco_accel.checkpoints.run_log import Logged

_OURS, _OTHER, _THIRD, _FAINT = "#1f5fa8", "#c25b1e", "#3c8a4d", "#8a8a8a"
_DPI = 110


def draw_curves(path: Path, logged: Logged, title: str) -> None:
    """Write a PNG of 2 × 3 curves over epochs."""
    figure = Figure(figsize=(15, 8), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    for axis, draw in zip(axes.flat, (_loss, _knn, _features, _schedule, _speed, _memory), strict=True):
        draw(axis, logged)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=13)
    canvas.print_figure(path, dpi=_DPI)


def _loss(axis: Axes, logged: Logged) -> None:
    axis.set_title("loss")
    axis.plot(*logged.column("loss"), color=_OURS, label="loss")
    _level(axis, logged.recipe.chance_loss, f"chance {logged.recipe.chance_loss:.2f}")
    axis.legend(frameon=False)


def _knn(axis: Axes, logged: Logged) -> None:
    axis.set_title(f"kNN-{logged.recipe.evaluation.neighbours} accuracy")
    epochs, values = logged.column("knn_top1", of_evaluations=True)
    if not epochs:
        _nothing(axis, "no labelled tiles:\nevaluation.train_source, test_source")
        return
    axis.plot(epochs, values, color=_OURS, marker="o", markersize=4, label=f"pretrained {values[-1]:.1%}")
    last = logged.evaluations[-1] if "knn_top1" in logged.evaluations[-1] else _last_with(logged, "knn_top1")
    _level(axis, last["knn_top1_random_init"], f"random initialisation {last['knn_top1_random_init']:.1%}", _OTHER)
    _level(axis, last["knn_top1_mean_colour"], f"mean colour {last['knn_top1_mean_colour']:.1%}", _THIRD)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.legend(frameon=False)


def _features(axis: Axes, logged: Logged) -> None:
    axis.set_title("features")
    epochs, ranks = logged.column("rank_me", of_evaluations=True)
    axis.plot(*logged.column("feature_std"), color=_OURS, label="spread (1: even, 0: collapsed)")
    axis.set_ylim(0, 1.1)
    lines, names = axis.get_legend_handles_labels()
    if epochs:
        beside = axis.twinx()
        of = logged.evaluations[-1]["rank_of"]
        beside.plot(epochs, ranks, color=_OTHER, marker="o", markersize=4, label=f"RankMe, of {of}")
        beside.set_ylim(0, 1.1 * max(ranks))
        beside.spines[["top"]].set_visible(False)
        more = beside.get_legend_handles_labels()
        lines, names = lines + more[0], names + more[1]
    axis.legend(lines, names, frameon=False, loc="lower right")


def _schedule(axis: Axes, logged: Logged) -> None:
    axis.set_title("lr and momentum coefficient")
    axis.plot(*logged.column("lr"), color=_OURS, label="lr")
    beside = axis.twinx()
    beside.plot(*logged.column("momentum_coefficient"), color=_OTHER, label="momentum coefficient (right)")
    beside.ticklabel_format(useOffset=False)
    beside.spines[["top"]].set_visible(False)
    lines, names = axis.get_legend_handles_labels()
    more = beside.get_legend_handles_labels()
    axis.legend(lines + more[0], names + more[1], frameon=False)


def _speed(axis: Axes, logged: Logged) -> None:
    axis.set_title("tiles per second")
    axis.plot(*logged.column("tiles_per_second"), color=_OURS, label="tiles/s")
    axis.set_ylim(bottom=0)
    waits = logged.column("data_wait_share")[1]
    if waits:
        axis.plot([], [], " ", label=f"waiting for data: {sum(waits) / len(waits):.1%} of the time")
    axis.legend(frameon=False, loc="lower right")


def _memory(axis: Axes, logged: Logged) -> None:
    axis.set_title("peak memory, MiB")
    axis.plot(*logged.column("peak_memory_mib"), color=_OURS, label="measured")
    planned = logged.rows[-1]["planned_memory_mib"]
    if planned:
        _level(axis, planned, f"planned {planned:,}")
    axis.set_ylim(0, 1.15 * max(logged.column("peak_memory_mib")[1] + [planned or 0]))
    axis.legend(frameon=False, loc="lower right")


def _level(axis: Axes, value: float, label: str, colour: str = _FAINT) -> None:
    axis.axhline(value, color=colour, linestyle="--", linewidth=1.2, label=label)


def _nothing(axis: Axes, words: str) -> None:
    axis.text(0.5, 0.5, words, transform=axis.transAxes, ha="center", va="center", color=_FAINT)
    axis.set_yticks([])


def _last_with(logged: Logged, name: str) -> dict[str, Any]:
    return next(row for row in reversed(logged.evaluations) if name in row)
