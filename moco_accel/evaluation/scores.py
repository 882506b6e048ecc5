"""What predictions are worth: confusion matrix, accuracy, balanced accuracy, and both over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """`confusion` int64 [C, C] counts test tiles: rows are their classes, columns what was predicted."""

    confusion: Tensor

    @property
    def top1(self) -> float:
        """Share of tiles whose class was predicted."""
        return int(self.confusion.trace()) / int(self.confusion.sum())

    @property
    def balanced(self) -> float:
        """Mean over classes of that share within each class: rare classes count as much as frequent ones."""
        counts = self.confusion.sum(dim=1)
        there = counts > 0
        return float((self.confusion.diagonal()[there] / counts[there]).double().mean())


def score(truth: Tensor, predicted: Tensor, num_classes: int) -> Score:
    """Of class numbers int64 [M], [M]."""
    pairs = torch.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return Score(pairs.view(num_classes, num_classes))


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None of a single value."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def figures_of(scores: dict[tuple[str, str], list[Score]]) -> dict[str, float]:
    """`PROBE_METRIC[_FEATURES]` → mean, and the same with `_sd` → deviation where there are several seeds.

    `scores` has a list of one score per seed, by (probe, features), e.g. ("knn", "_grey_random_init").
    """
    figures: dict[str, float] = {}
    for (probe, features), by_seed in scores.items():
        for metric in ("top1", "balanced"):
            mean, deviation = mean_and_sd([getattr(each, metric) for each in by_seed])
            figures[f"{probe}_{metric}{features}"] = mean
            if deviation is not None:
                figures[f"{probe}_{metric}{features}_sd"] = deviation
    return figures
