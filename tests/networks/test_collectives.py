"""Several gloo ranks give the losses and gradients of one; BatchNorm over ranks equals BatchNorm."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from support.rank_scripts import run_ranks

from moco_accel.networks.collectives import GlobalBatchNorm1d, _GlobalBatchNorm


@cache
def run_without_ranks(sections: str) -> Any:
    return run_ranks("step_processes.py", 0, sections)


@pytest.mark.parametrize(
    ("count", "sections"),
    [
        (1, {}),
        (2, {}),
        (4, {"moco": {"queue_size": 16}}),
        pytest.param(4, {"memory": {"activation_checkpointing": True}}, marks=pytest.mark.slow),
    ],
    ids=["1 rank", "2 ranks", "4 ranks, queue", "4 ranks, checkpointing"],
)
def test_several_ranks_equal_a_single_process(sections: dict[str, Any], count: int) -> None:
    single = run_without_ranks(json.dumps(sections))
    assert not single["group"]
    micro_batch_size = 4 // count
    batch = {"hardware": {"num_devices": count}, "batch": {"micro_batch_size": micro_batch_size}}
    several = run_ranks("step_processes.py", count, json.dumps(sections | batch))
    assert several["group"]
    assert several["gradient_reductions"] == [int(count > 1)] * 2  # one all-reduce of all gradients per step
    assert (single["processes"], several["processes"]) == (1, count)
    assert several["losses"] == pytest.approx(single["losses"], rel=1e-10)
    gradient, expected = (torch.tensor(run["gradient"], dtype=torch.float64) for run in (several, single))
    assert (gradient - expected).norm() / expected.norm() < 1e-10
    assert several["gradient_norm"] == pytest.approx(single["gradient_norm"], rel=1e-10)
    assert several["running"] == pytest.approx(single["running"], rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("affine", [True, False])
def test_global_batch_norm_on_one_rank_equals_batch_norm(affine: bool) -> None:
    torch.manual_seed(0)
    rows = torch.randn(12, 5, dtype=torch.float64) * 3 + 1
    weight, bias = (torch.randn(5, dtype=torch.float64) for _ in range(2)) if affine else (None, None)
    inputs = [t.clone().requires_grad_() if t is not None else None for t in (rows, weight, bias)]
    output, mean, variance = _GlobalBatchNorm.apply(*inputs, 1e-5)
    references = [t.clone().requires_grad_() if t is not None else None for t in (rows, weight, bias)]
    expected = torch.nn.functional.batch_norm(references[0], None, None, references[1], references[2], training=True)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(variance, rows.var(0, correction=0))
    torch.testing.assert_close(mean, rows.mean(0))
    seed = torch.randn_like(rows)
    output.backward(seed)
    expected.backward(seed)
    for ours, reference in zip(inputs, references, strict=True):
        if ours is not None and reference is not None:
            torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-10, atol=1e-12)


def test_running_statistics_equal_torch() -> None:
    norm, expected = GlobalBatchNorm1d(4), torch.nn.BatchNorm1d(4)
    rows = torch.randn(10, 4)
    _, mean, variance = _GlobalBatchNorm.apply(rows, norm.weight, norm.bias, norm.eps)
    norm._update_running_statistics(mean, variance, 10)
    expected(rows)
    torch.testing.assert_close(norm.running_mean, expected.running_mean)
    torch.testing.assert_close(norm.running_var, expected.running_var)
    assert norm.num_batches_tracked == expected.num_batches_tracked
