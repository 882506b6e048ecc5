"""Draw a run's curves: loss, kNN accuracy, features, schedule, speed and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from moco_accel.checkpoints.run_log import RunLog

_OURS, _OTHER, _THIRD, _FAINT = "#1f5fa8", "#c25b1e", "#3c8a4d", "#8a8a8a"
_DPI = 110


def draw_curves(path: Path, run_log: RunLog, title: str) -> None:
    """Write a PNG of 2 × 3 plots over epochs."""
    figure = Figure(figsize=(15, 8), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    for axis, draw in zip(axes.flat, (_loss, _knn, _features, _schedule, _speed, _memory), strict=True):
        draw(axis, run_log)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=13)
    canvas.print_figure(path, dpi=_DPI)


def _loss(axis: Axes, run_log: RunLog) -> None:
    axis.set_title("loss")
    axis.plot(*run_log.column("loss"), color=_OURS, label="loss")
    _draw_level(axis, run_log.recipe.chance_loss, f"chance {run_log.recipe.chance_loss:.2f}")
    axis.legend(frameon=False)


def _knn(axis: Axes, run_log: RunLog) -> None:
    axis.set_title(f"kNN-{run_log.recipe.evaluation.neighbours} accuracy")
    epochs, values = run_log.column("knn_top1", of_evaluations=True)
    if not epochs:
        axis.text(0.5, 0.5, _why_no_knn(run_log), transform=axis.transAxes, ha="center", va="center", color=_FAINT)
        axis.set_yticks([])
        return
    axis.plot(epochs, values, color=_OURS, marker="o", markersize=4, label=f"pretrained {values[-1]:.1%}")
    last = next(row for row in reversed(run_log.evaluations) if "knn_top1" in row)
    _draw_level(axis, last["knn_top1_random_init"], f"random initialisation {last['knn_top1_random_init']:.1%}", _OTHER)
    _draw_level(axis, last["knn_top1_mean_colour"], f"mean colour {last['knn_top1_mean_colour']:.1%}", _THIRD)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.legend(frameon=False)


def _why_no_knn(run_log: RunLog) -> str:
    config = run_log.recipe.evaluation
    if config.train_source is None or config.test_source is None:
        return "no labelled tiles:\nevaluation.train_source, test_source"
    if config.every_epochs is None:
        return "not evaluated:\nevaluation.every_epochs=null"
    return "labelled tiles not evaluated yet:\nthe first evaluation is after epoch " + str(config.every_epochs)


def _features(axis: Axes, run_log: RunLog) -> None:
    axis.set_title("features")
    epochs, ranks = run_log.column("rank_me", of_evaluations=True)
    axis.plot(*run_log.column("feature_std"), color=_OURS, label="spread (1: even, 0: collapsed)")
    axis.set_ylim(0, 1.1)
    axes = [axis]
    if epochs:
        axes.append(_add_right_axis(axis))
        label = f"RankMe, of {run_log.evaluations[-1]['rank_of']}"
        axes[1].plot(epochs, ranks, color=_OTHER, marker="o", markersize=4, label=label)
        axes[1].set_ylim(0, 1.1 * max(ranks))
    _add_legend(axes, "lower right")


def _schedule(axis: Axes, run_log: RunLog) -> None:
    axis.set_title("lr and momentum coefficient")
    axis.plot(*run_log.column("lr"), color=_OURS, label="lr")
    right = _add_right_axis(axis)
    right.plot(*run_log.column("momentum_coefficient"), color=_OTHER, label="momentum coefficient (right)")
    right.ticklabel_format(useOffset=False)
    _add_legend([axis, right])


def _speed(axis: Axes, run_log: RunLog) -> None:
    axis.set_title("tiles per second")
    axis.plot(*run_log.column("tiles_per_second"), color=_OURS, label="tiles/s")
    axis.set_ylim(bottom=0)
    waits = run_log.column("data_wait_share")[1]
    if waits:
        axis.plot([], [], " ", label=f"waiting for data: {sum(waits) / len(waits):.1%} of the time")
    axis.legend(frameon=False, loc="lower right")


def _memory(axis: Axes, run_log: RunLog) -> None:
    axis.set_title("peak memory, MiB")
    axis.plot(*run_log.column("peak_memory_mib"), color=_OURS, label="measured")
    planned = run_log.rows[-1]["planned_memory_mib"]
    if planned:
        _draw_level(axis, planned, f"planned {planned:,}")
    axis.set_ylim(0, 1.15 * max(run_log.column("peak_memory_mib")[1] + [planned or 0]))
    axis.legend(frameon=False, loc="lower right")


def _draw_level(axis: Axes, value: float, label: str, colour: str = _FAINT) -> None:
    axis.axhline(value, color=colour, linestyle="--", linewidth=1.2, label=label)


def _add_right_axis(axis: Axes) -> Axes:
    right = axis.twinx()
    right.spines[["top"]].set_visible(False)
    return right


def _add_legend(axes: Sequence[Axes], location: str = "best") -> None:
    found = [axis.get_legend_handles_labels() for axis in axes]
    lines, labels = ([each for one in part for each in one] for part in zip(*found, strict=True))
    axes[0].legend(lines, labels, frameon=False, loc=location)
