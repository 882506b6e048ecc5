"""Accuracy of predicted classes, and statistics of features that need no labels."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor
from torch.nn.functional import normalize, pdist


@dataclass(frozen=True)
class Score:
    """Confusion matrix of the test tiles, int64 [true classes, predicted classes], and accuracies."""

    confusion: Tensor

    @property
    def top1(self) -> float:
        """Return the share of tiles that are predicted correctly."""
        return int(self.confusion.trace()) / int(self.confusion.sum())

    @property
    def balanced(self) -> float:
        """Return the mean accuracy of the classes that have test tiles."""
        counts = self.confusion.sum(dim=1)
        present = counts > 0
        return float((self.confusion.diagonal()[present] / counts[present]).double().mean())


def score_predictions(truth: Tensor, predicted: Tensor, num_classes: int) -> Score:
    """Compare true and predicted class numbers, int64 [tiles] each."""
    pairs = torch.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return Score(pairs.view(num_classes, num_classes))


def accuracies_by_seed(scores: dict[tuple[str, str], list[Score]]) -> dict[str, list[float]]:
    """Return the accuracies of each seed by `CLASSIFIER_METRIC[_FEATURES]`, e.g. `knn_top1_grey_random_init`.

    `scores` has one score per seed, by (classifier, features), e.g. ("knn", "_grey_random_init").
    """
    return {
        f"{classifier}_{metric}{features}": [getattr(score, metric) for score in by_seed]
        for (classifier, features), by_seed in scores.items()
        for metric in ("top1", "balanced")
    }


def summarise_scores(scores: dict[tuple[str, str], list[Score]]) -> dict[str, float]:
    """Return the mean accuracies over seeds, and with several seeds their sample standard deviations by `KEY_sd`."""
    summary: dict[str, float] = {}
    for key, values in accuracies_by_seed(scores).items():
        summary[key] = fmean(values)
        if len(values) > 1:
            summary[f"{key}_sd"] = stdev(values)
    return summary


def rank_me(features: Tensor) -> float:
    """Return the effective rank of features [tiles, D], from 1 (all on a line) to min(tiles, D).

    It is exp of the entropy of the singular values (RankMe, Garrido et al. 2023). As in the paper, features are neither
    centred nor normalised.
    """
    singular = torch.linalg.svdvals(features.double())
    shares = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float((-torch.xlogy(shares, shares).sum()).exp())


def alignment(first: Tensor, second: Tensor) -> float:
    """Return the mean squared distance of the normalised features [tiles, D] of two views; 0 is perfect.

    Source: Wang and Isola 2020.
    """
    return float((_on_sphere(first) - _on_sphere(second)).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """Return log E[exp(-2 distance²)] over pairs of normalised features [tiles, D].

    0 means that all features are equal, -4 that they are spread evenly. Source: Wang and Isola 2020.
    """
    return float(pdist(_on_sphere(features)).square().mul(-2).exp().mean().log())


def _on_sphere(features: Tensor) -> Tensor:
    return normalize(features.double(), dim=1)
