"""Figures of features against plain arithmetic and cases known by hand."""

from __future__ import annotations

import math

import pytest
import torch

from moco_accel.evaluation.feature_health import alignment, rank_me, uniformity


def test_rank_is_counted() -> None:
    assert rank_me(torch.eye(8)) == pytest.approx(8)
    assert rank_me(torch.ones(20, 8)) == pytest.approx(1, abs=1e-6)
    halves = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert rank_me(halves) == pytest.approx(2)
    unequal = torch.diag(torch.tensor([3.0, 1.0]))
    assert rank_me(unequal) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_no_features_at_all_have_no_rank_and_no_nan() -> None:
    assert rank_me(torch.zeros(4, 3)) == pytest.approx(1)


def test_alignment_and_uniformity_are_those_of_the_paper() -> None:
    """Against pairs counted one by one; worst difference 4e-16."""
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(30, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    one, two = ([row / row.norm() for row in rows] for rows in (first, second))
    expected = sum(float(((a - b) ** 2).sum()) for a, b in zip(one, two, strict=True)) / 30
    assert alignment(3 * first, second) == pytest.approx(expected, abs=1e-14)
    pairs = [math.exp(-2 * float(((one[i] - one[j]) ** 2).sum())) for i in range(30) for j in range(i)]
    assert uniformity(first) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-14)
    assert alignment(first, first) == 0
    assert uniformity(torch.ones(9, 4)) == 0
