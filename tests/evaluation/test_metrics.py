"""Accuracies, and statistics of features, against plain arithmetic and cases known by hand."""

from __future__ import annotations

import math

import pytest
import torch

from moco_accel.evaluation.metrics import (
    alignment,
    rank_me,
    score_predictions,
    summarise_scores,
    uniformity,
)


def test_balanced_accuracy_weights_all_classes_equally() -> None:
    truth, predicted = torch.tensor([0] * 8 + [1] * 2), torch.tensor([0] * 8 + [0, 1])
    score = score_predictions(truth, predicted, 3)
    assert score.confusion.tolist() == [[8, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert score.top1 == pytest.approx(0.9)
    assert score.balanced == 0.75  # the third class has no tile


def test_mean_and_sample_deviation() -> None:
    right, wrong = (score_predictions(torch.tensor([0]), torch.tensor([p]), 2) for p in (0, 1))
    assert summarise_scores({("knn", ""): [right]}) == {"knn_top1": 1, "knn_balanced": 1}
    assert summarise_scores({("knn", "_grey"): [right, wrong]}) == {
        "knn_top1_grey": 0.5,
        "knn_top1_grey_sd": pytest.approx(0.5**0.5),
        "knn_balanced_grey": 0.5,
        "knn_balanced_grey_sd": pytest.approx(0.5**0.5),
    }


def test_rank_me_of_known_ranks() -> None:
    assert rank_me(torch.eye(8)) == pytest.approx(8)
    assert rank_me(torch.ones(20, 8)) == pytest.approx(1, abs=1e-6)
    halves = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert rank_me(halves) == pytest.approx(2)
    unequal = torch.diag(torch.tensor([3.0, 1.0]))
    assert rank_me(unequal) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_rank_me_of_zeros_is_not_nan() -> None:
    assert rank_me(torch.zeros(4, 3)) == pytest.approx(1)


def test_alignment_and_uniformity_match_the_paper() -> None:
    """Pairs are counted one by one; worst difference 4e-16."""
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(30, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    one, two = ([row / row.norm() for row in rows] for rows in (first, second))
    expected = sum(float(((a - b) ** 2).sum()) for a, b in zip(one, two, strict=True)) / 30
    assert alignment(3 * first, second) == pytest.approx(expected, abs=1e-14)
    pairs = [math.exp(-2 * float(((one[i] - one[j]) ** 2).sum())) for i in range(30) for j in range(i)]
    assert uniformity(first) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-14)
    assert alignment(first, first) == 0
    assert uniformity(torch.ones(9, 4)) == 0
