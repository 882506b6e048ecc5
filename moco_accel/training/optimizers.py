"""Optimizers, and the schedules of learning rate and momentum coefficient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from moco_accel.recipe.schema import Recipe

_MOMENTUM, _TRUST_COEFFICIENT = 0.9, 0.001  # of LARS


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Build the recipe's optimizer of the trainable parameters, with weight decay on all of them, as in MoCo v3."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lr, weight_decay = recipe.optimizer.lr, recipe.optimizer.weight_decay
    if recipe.optimizer.name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    if recipe.optimizer.name == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        # AdamW8bit would do this in its first step, and move gradients out of the gradient buffer
        for parameter in parameters:
            parameter.data = parameter.data.contiguous()
        return cast(torch.optim.Optimizer, AdamW8bit(parameters, lr=lr, weight_decay=weight_decay))
    return LARS(parameters, lr=lr, weight_decay=weight_decay)


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888) as MoCo v3 uses it.

    Parameters of more than one dimension: g ← g + wd·p, then g ← 0.001·(‖p‖/‖g‖)·g, with factor 1 if a norm is 0.
    All parameters: μ ← 0.9·μ + g; p ← p − lr·μ.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; closures are not supported."""
        assert closure is None, "LARS does not support closures"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if parameter.ndim > 1:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
            norms = parameter.norm(), gradient.norm()
            ratio = _TRUST_COEFFICIENT * norms[0] / norms[1]
            gradient *= torch.where((norms[0] > 0) & (norms[1] > 0), ratio, torch.ones_like(ratio))
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        state["velocity"].mul_(_MOMENTUM).add_(gradient)
        parameter.sub_(group["lr"] * state["velocity"])


def lr_at(recipe: Recipe, epoch: float) -> float:
    """Return the learning rate at a fractional `epoch`: linear warm-up from 0, then half a cosine to 0."""
    warmup, epochs = recipe.schedule.warmup_epochs, recipe.schedule.epochs
    if epoch < warmup:
        return recipe.optimizer.lr * epoch / warmup
    progress = (epoch - warmup) / (epochs - warmup) if epochs > warmup else 0.0
    return recipe.optimizer.lr * 0.5 * (1 + math.cos(math.pi * progress))


def momentum_coefficient_at(recipe: Recipe, epoch: float) -> float:
    """Return the momentum coefficient at a fractional `epoch`: constant, or half a cosine from m₀ to 1."""
    start = recipe.moco.momentum_coefficient
    if recipe.moco.momentum_schedule == "constant":
        return start
    return 1 - 0.5 * (1 + math.cos(math.pi * epoch / recipe.schedule.epochs)) * (1 - start)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr
