"""Several gloo processes give the losses and gradients of one; BatchNorm over processes equals BatchNorm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_accel.networks.collectives import GlobalBatchNorm1d, _GlobalBatchNorm

SUPPORT = Path(__file__).parents[1] / "support"


def run_processes(count: int, sections: dict[str, Any]) -> dict[str, Any]:
    """What `step_processes.py` printed; 0 processes are one without a process group."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"] if count else []
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT.parent)}
    command = [sys.executable, *launch, str(SUPPORT / "step_processes.py"), json.dumps(sections)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


@cache
def run_alone(sections: str) -> dict[str, Any]:
    return run_processes(0, json.loads(sections))


@pytest.mark.parametrize(
    ("count", "sections"),
    [
        (1, {}),
        (2, {}),
        (4, {"moco": {"queue_size": 16}}),
        (4, {"memory": {"activation_checkpointing": True}}),
    ],
    ids=["a group of one", "2", "4 with a queue", "4 checkpointed"],
)
def test_processes_equal_one(sections: dict[str, Any], count: int) -> None:
    alone = run_alone(json.dumps(sections))
    assert not alone["group"]
    micro_batch_size = 4 // count
    many = {"hardware": {"num_devices": count}, "batch": {"micro_batch_size": micro_batch_size}}
    many_processes = run_processes(count, sections | many)
    assert many_processes["group"]
    assert many_processes["sent"] == [int(count > 1)] * 2  # all gradients, once a step
    assert (alone["processes"], many_processes["processes"]) == (1, count)
    assert many_processes["losses"] == pytest.approx(alone["losses"], rel=1e-10)
    gradient, expected = (torch.tensor(run["gradient"], dtype=torch.float64) for run in (many_processes, alone))
    assert (gradient - expected).norm() / expected.norm() < 1e-10
    assert many_processes["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-10)
    assert many_processes["running"] == pytest.approx(alone["running"], rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("affine", [True, False])
def test_global_batch_norm_alone_equals_batch_norm(affine: bool) -> None:
    torch.manual_seed(0)
    rows = torch.randn(12, 5, dtype=torch.float64) * 3 + 1
    weight, bias = (torch.randn(5, dtype=torch.float64) for _ in range(2)) if affine else (None, None)
    inputs = [t.clone().requires_grad_() if t is not None else None for t in (rows, weight, bias)]
    output, mean, variance = _GlobalBatchNorm.apply(*inputs, 1e-5)
    others = [t.clone().requires_grad_() if t is not None else None for t in (rows, weight, bias)]
    expected = torch.nn.functional.batch_norm(others[0], None, None, others[1], others[2], training=True)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(variance, rows.var(0, correction=0))
    torch.testing.assert_close(mean, rows.mean(0))
    seed = torch.randn_like(rows)
    output.backward(seed)
    expected.backward(seed)
    for ours, theirs in zip(inputs, others, strict=True):
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_running_statistics_follow_torch() -> None:
    norm, expected = GlobalBatchNorm1d(4), torch.nn.BatchNorm1d(4)
    rows = torch.randn(10, 4)
    _, mean, variance = _GlobalBatchNorm.apply(rows, norm.weight, norm.bias, norm.eps)
    norm._update_running_statistics(mean, variance, 10)
    expected(rows)
    torch.testing.assert_close(norm.running_mean, expected.running_mean)
    torch.testing.assert_close(norm.running_var, expected.running_var)
    assert norm.num_batches_tracked == expected.num_batches_tracked
