"""Draw the pictures of moco-eval: nearest neighbours, a confusion matrix, and a map of test tiles in two dimensions."""

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
from moco_accel.evaluation.baselines import BaselineComparison
from moco_accel.evaluation.neighbours_picture import draw_neighbours
from moco_accel.recipe.schema import Recipe

_MAX_TILES_ON_MAP = 2000
_MAX_CLASSES_WITH_NUMBERS = 24
_MAX_CLASSES_IN_LEGEND = 20
_MAX_NAME_LENGTH = 24
_PCA_COMPONENTS = 50
_DPI = 120
# ten hues, as distinct as possible for colour-blind readers; further classes have other markers
_COLOURS = (
    "#2468b4", "#d9822b", "#1f9d63", "#d8433b", "#7d5ba6", "#8c6239", "#e377c2", "#7f8c99", "#b5b52b", "#21b3c4",
)  # fmt: skip
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")


def draw_pictures(folder: Path, recipe: Recipe, comparison: BaselineComparison) -> tuple[str, ...]:
    """Write neighbours.png, confusion.png and map.png, for the first seed; return their names."""
    draw_neighbours(folder / "neighbours.png", recipe, comparison)
    classifier, label = ("linear", "linear probe") if ("linear", "") in comparison.scores else ("knn", "kNN")
    score, names = comparison.scores[classifier, ""][0], comparison.pool.names
    title = f"{recipe.encoder.name}, {label}: accuracy {score.top1:.1%}, balanced {score.balanced:.1%}"
    draw_confusion(folder / "confusion.png", score.confusion, names, title)
    panels = [
        (heading, comparison.split_features(suffix)[1])
        for heading, suffix in (("pretrained", ""), ("random initialisation", "_random_init"))
    ]
    draw_map(folder / "map.png", panels, comparison.pool.labels[comparison.splits[0].test], names)
    return "neighbours.png", "confusion.png", "map.png"


def draw_confusion(path: Path, confusion: Tensor, names: Sequence[str], title: str) -> None:
    """Write a PNG of a confusion matrix, int64 [true classes, predicted classes], shaded by the share of each row.

    Classes with neither a test tile nor a prediction are left out.
    """
    present = [number for number in range(len(names)) if confusion[number].sum() or confusion[:, number].sum()]
    counts = confusion[present][:, present].numpy()
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    with_numbers = len(present) <= _MAX_CLASSES_WITH_NUMBERS
    side = max(3.2, min(16, len(present) * (0.72 if with_numbers else 0.26)))
    figure = _new_figure(side + 4.6, side + 2.6)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _label_axes(axes, [_shorten(names[number]) for number in present], totals, with_numbers)
    if with_numbers:
        _write_cells(axes, counts, shares)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %"], fontsize=12)
    bar.set_label("share of the true class", fontsize=13)
    bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=15, color=INK)
    _save(figure, path)


def _label_axes(axes: Any, names: Sequence[str], totals: Any, with_numbers: bool) -> None:
    size = 12 if with_numbers else 9
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    labels = [f"{name}  n={total:,}" for name, total in zip(names, totals, strict=True)]
    axes.set_yticks(range(len(names)), labels, fontsize=size)
    axes.set_xlabel("predicted", fontsize=14)
    axes.set_ylabel("true class, n tiles", fontsize=14)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(1, len(names)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(names)) - 0.5, minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=1.5 if with_numbers else 0.5)
    axes.tick_params(which="minor", length=0)


def _write_cells(axes: Any, counts: Any, shares: Any) -> None:
    """Write the share in per cent and the count into each cell that is not zero."""
    for row, col in zip(*np.nonzero(counts), strict=True):
        share, centred = shares[row, col], {"ha": "center", "va": "center"}
        colour, text = PAPER if share > 0.55 else INK, f"{share:.0%}" if share >= 0.005 else "<1%"
        axes.text(col, row - 0.14, text, fontsize=12, color=colour, **centred)
        axes.text(col, row + 0.24, f"{counts[row, col]:,}", fontsize=9, color=colour, **centred)


def draw_map(path: Path, panels: Sequence[tuple[str, Tensor]], labels: Tensor, names: Sequence[str]) -> None:
    """Write a PNG with a two-dimensional map of tiles for each kind of features.

    Each map is computed separately. Tiles that are close have similar features; axes and larger distances have no
    meaning. `panels` have a heading and features [tiles, D] each.
    """
    chosen = subsample(len(labels), _MAX_TILES_ON_MAP)
    figure = _new_figure(7 * len(panels) + 2.8, 7.6)
    present = sorted(set(labels[chosen].tolist()))
    for number, (heading, features) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        _draw_dots(axes, embed_in_2d(features[chosen]), labels[chosen], names, present)
        axes.set_title(heading, fontsize=16, color=INK, pad=10)
    handles, texts = figure.axes[0].get_legend_handles_labels()
    count = _MAX_CLASSES_IN_LEGEND
    legend = figure.legend(
        handles[:count],
        texts[:count],
        loc="outside right center",
        fontsize=13,
        frameon=False,
        markerscale=2,
        title=f"first {count} of {len(texts)} classes" if len(texts) > count else None,
        title_fontsize=13,
    )
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    figure.supxlabel(f"{len(chosen):,} test tiles: PCA, then t-SNE", fontsize=13, color=FAINT)
    _save(figure, path)


def _draw_dots(axes: Any, positions: Any, labels: Tensor, names: Sequence[str], present: Sequence[int]) -> None:
    size = 40 if len(positions) < 300 else 14
    for place, label in enumerate(present):
        of_class = positions[(labels == label).numpy()]
        colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place // len(_COLOURS) % len(_MARKERS)]
        axes.scatter(
            *of_class.T, s=size, c=colour, marker=marker, alpha=0.75, linewidths=0, label=_shorten(names[label])
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color("#d5dae0")


def embed_in_2d(features: Tensor) -> Any:
    """Project features to two dimensions, [tiles, 2]: L2 normalisation as for kNN, 50 principal components, then t-SNE.

    Up to three tiles, and features of one dimension, are projected by PCA alone. The result is the same on every call.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    values = normalize(features, dim=1).numpy()
    num_components = min(_PCA_COMPONENTS, *values.shape)
    with threadpool_limits(1):
        components = PCA(num_components, svd_solver="full").fit_transform(values)
        if len(values) <= 3 or num_components < 2:
            return np.pad(components, ((0, 0), (0, 2)))[:, :2]
        perplexity = min(30.0, (len(values) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(components)


def subsample(count: int, max_count: int) -> Tensor:
    """Draw at most `max_count` of `count` indices with a fixed seed; return them sorted."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:max_count].sort().values


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME_LENGTH else name[: _MAX_NAME_LENGTH - 1] + "…"


def _new_figure(width: float, height: float) -> Any:
    """Create a figure without pyplot, which keeps global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor=PAPER)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    figure.canvas.draw()
    save_png(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy()), path)
