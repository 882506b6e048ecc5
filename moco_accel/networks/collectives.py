"""Collectives of the training step: gathered keys, averaged gradients, BatchNorm over the global batch.

Without a process group, or with a single rank, every function works locally.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moco_accel.processes.control_group import exchange_status
from moco_accel.processes.phases import waiting_for_peers


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def gather_keys(keys: Tensor) -> Tensor:
    """Return the keys of all ranks [ranks * rows, dim] in rank order, without gradient.

    Every rank must have the same number of rows.
    """
    if world_size() == 1:
        return keys
    keys = keys.contiguous()
    gathered = keys.new_empty(world_size() * keys.shape[0], *keys.shape[1:])
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.14
    with waiting_for_peers():
        exchange_status()
        all_gather(gathered, keys)
    return gathered


def sum_over_processes(values: Tensor, group: Any = None) -> Tensor:
    """Sum `values` over all ranks, or over those of `group`, in place and without gradient; return them."""
    if world_size() > 1:
        with waiting_for_peers():
            exchange_status()
            dist.all_reduce(values, group=group)
    return values


def average_over_processes(gradient: Tensor, group: Any = None) -> None:
    """Average `gradient` over all ranks, or over those of `group`, in place."""
    if world_size() > 1:
        sum_over_processes(gradient.div_(dist.get_world_size(group)), group)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d with training statistics of the global batch, on CPU and GPU.

    torch's SyncBatchNorm does not support CPU tensors. With one implementation, tests on two gloo processes hold for
    two GPUs. Every rank must have the same number of rows.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise `rows` [rows, features]; keep their dtype."""
        if not self.training or world_size() == 1:
            return super().forward(rows)
        output, mean, variance = _GlobalBatchNorm.apply(rows, self.weight, self.bias, self.eps)
        self._update_running_statistics(mean, variance, rows.shape[0] * world_size())
        assert isinstance(output, Tensor)
        return output

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None  # noqa: PT018
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = variance * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


class _GlobalBatchNorm(torch.autograd.Function):
    """Sum statistics and gradients over ranks; save only the input and two vectors for backward."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = rows.to(torch.promote_types(rows.dtype, torch.float32))  # statistics never in 16 bits
        count = rows.shape[0] * world_size()
        mean = sum_over_processes(exact.sum(0)) / count
        variance = sum_over_processes((exact - mean).square_().sum(0)) / count
        scale = torch.rsqrt(variance + eps)
        output = (exact - mean) * scale
        if weight is not None and bias is not None:
            output = output * weight + bias
        ctx.save_for_backward(rows, weight, mean, scale)
        ctx.mark_non_differentiable(mean, variance)
        return output.to(rows.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        rows, weight, mean, scale = ctx.saved_tensors
        gradient = gradients[0].to(mean.dtype)
        normalised = (rows.to(mean.dtype) - mean) * scale
        bias_gradient, weight_gradient = gradient.sum(0), (gradient * normalised).sum(0)
        # the statistics are shared, so the loss of every rank depends on these rows through them
        sums = sum_over_processes(torch.stack([bias_gradient, weight_gradient])) / (rows.shape[0] * world_size())
        row_scale = scale if weight is None else scale * weight
        rows_gradient = (gradient - sums[0] - normalised * sums[1]) * row_scale
        affine = (None, None) if weight is None else (weight_gradient.to(weight.dtype), bias_gradient.to(weight.dtype))
        return rows_gradient.to(rows.dtype), *affine, None
