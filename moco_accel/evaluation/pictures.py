"""Two pictures of features: which classes are taken for which, and a map of test tiles in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from moco_accel.common.drawing import FAINT, INK, PAPER, save_png

MOST_ON_MAP = 2000  # tiles
_MOST_CELLS_WITH_NUMBERS = 24  # classes
_MOST_IN_LEGEND = 20
_LONGEST_NAME = 24  # characters
_COMPONENTS = 50  # of PCA, before t-SNE
_DPI = 120
# ten hues that stay apart for colour-blind eyes as far as ten can, then shapes
_COLOURS = (
    "#2468b4",
    "#d9822b",
    "#1f9d63",
    "#d8433b",
    "#7d5ba6",
    "#8c6239",
    "#e377c2",
    "#7f8c99",
    "#b5b52b",
    "#21b3c4",
)
_SHAPES = ("o", "^", "s", "D", "v", "P", "X", "*")


def draw_confusion(path: Path, confusion: Tensor, names: Sequence[str], title: str) -> None:
    """Write a PNG of int64 [C, C]: rows are true classes with their number of tiles, shaded by share of the row.

    Classes without a test tile have no row or column.
    """
    there = [number for number in range(len(names)) if confusion[number].sum() or confusion[:, number].sum()]
    counts = confusion[there][:, there].numpy()
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    short = [_short(names[number]) for number in there]
    with_numbers = len(there) <= _MOST_CELLS_WITH_NUMBERS
    side = max(3.2, min(16, len(there) * (0.72 if with_numbers else 0.26)))
    figure, canvas = _figure(side + 4.6, side + 2.6)
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 12 if with_numbers else 9
    axes.set_xticks(range(len(there)), short, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    labels = [f"{name}  n={total:,}" for name, total in zip(short, totals, strict=True)]
    axes.set_yticks(range(len(there)), labels, fontsize=size)
    axes.set_xlabel("predicted", fontsize=14)
    axes.set_ylabel("true class, n tiles", fontsize=14)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(1, len(there)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(there)) - 0.5, minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=1.5 if with_numbers else 0.5)
    axes.tick_params(which="minor", length=0)
    if with_numbers:
        _write_cells(axes, counts, shares)
    bar = figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %"], fontsize=12)
    bar.set_label("share of the true class", fontsize=13)
    bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=15, color=INK)
    _save(canvas, path)


def _write_cells(axes: Any, counts: Any, shares: Any) -> None:
    """The share in per cent over the count; nothing where there is none."""
    for row, col in zip(*np.nonzero(counts), strict=True):
        share, colour = shares[row, col], PAPER if shares[row, col] > 0.55 else INK
        axes.text(
            col,
            row - 0.14,
            f"{share:.0%}" if share >= 0.005 else "<1%",
            ha="center",
            va="center",
            fontsize=12,
            color=colour,
        )
        axes.text(col, row + 0.24, f"{counts[row, col]:,}", ha="center", va="center", fontsize=9, color=colour)


def draw_map(path: Path, panels: Sequence[tuple[str, Tensor]], labels: Tensor, names: Sequence[str]) -> None:
    """Write a PNG with a map for each (heading, features [M, D]), a dot per tile in its class's colour.

    `labels` int64 [M]. Each map is made on its own: what is near is alike, axes and distances mean nothing else.
    """
    chosen = spread(labels, MOST_ON_MAP)
    figure, canvas = _figure(7 * len(panels) + 2.8, 7.6)
    present = sorted(set(labels[chosen].tolist()))
    for number, (heading, features) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        _draw_dots(axes, flat_map(features[chosen]), labels[chosen], names, present)
        axes.set_title(heading, fontsize=16, color=INK, pad=10)
    handles, texts = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(
        handles[:_MOST_IN_LEGEND],
        texts[:_MOST_IN_LEGEND],
        loc="outside right center",
        fontsize=13,
        frameon=False,
        markerscale=2,
        title=f"first {_MOST_IN_LEGEND} of {len(texts)} classes" if len(texts) > _MOST_IN_LEGEND else None,
        title_fontsize=13,
    )
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    figure.supxlabel(f"{len(chosen):,} test tiles: PCA, then t-SNE", fontsize=13, color=FAINT)
    _save(canvas, path)


def _draw_dots(axes: Any, places: Any, labels: Tensor, names: Sequence[str], present: Sequence[int]) -> None:
    for place, label in enumerate(present):
        of_class = places[(labels == label).numpy()]
        colour, shape = _COLOURS[place % len(_COLOURS)], _SHAPES[place // len(_COLOURS) % len(_SHAPES)]
        few = len(places) < 300
        axes.scatter(
            *of_class.T,
            s=40 if few else 14,
            c=colour,
            marker=shape,
            alpha=0.75,
            linewidths=0,
            label=_short(names[label]),
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color("#d5dae0")


def flat_map(features: Tensor) -> Any:
    """Features [M, D] → float32 [M, 2]: length 1 as for kNN, the first 50 principal components, then t-SNE.

    Three tiles or fewer lie on their principal components. The same on each call.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    values = normalize(features, dim=1).numpy()
    most = min(_COMPONENTS, *values.shape)
    with threadpool_limits(1):
        components = PCA(most, svd_solver="full").fit_transform(values)
        if len(values) <= 3 or most < 2:
            return np.pad(components, ((0, 0), (0, 2)))[:, :2]
        perplexity = min(30.0, (len(values) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(components)


def spread(labels: Tensor, most: int) -> Tensor:
    """Indices of at most `most` tiles, drawn with a fixed seed; sorted."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return order[:most].sort().values


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """Without pyplot: nothing global is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor=PAPER)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    return figure, FigureCanvasAgg(figure)


def _save(canvas: Any, path: Path) -> None:
    canvas.draw()
    save_png(Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy()), path)
