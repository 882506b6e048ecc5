"""MoCo v3's step as the paper writes it: both views at once, no micro-batches. For comparison; nothing trains on it."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from moco_accel.networks.collectives import average_over_processes, gather_keys
from moco_accel.networks.moco import MoCo, View
from moco_accel.recipe.schema import Recipe
from moco_accel.training.step import StepResult, optimizer_step


def both_views_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: tuple[View, View],
    recipe: Recipe,
    momentum_coefficient: float,
) -> StepResult:
    """`train_step`'s result for `contrast_over: global_batch`, with both views' activations alive at once."""
    moco = accelerator.unwrap_model(model)
    assert isinstance(moco, MoCo)
    moco.update_momentum_side(momentum_coefficient)
    moco.gradient.zero_()
    view1, view2 = ([torch.cat([view[index] for index in range(len(view))])] for view in views)
    with accelerator.autocast():
        keys1, keys2 = gather_keys(moco.keys(view1)), gather_keys(moco.keys(view2))
    loss1, spread1 = model(view1, keys2)
    loss2, spread2 = model(view2, keys1)
    accelerator.backward(loss1 + loss2)
    for gradient, processes in moco.gradients():
        average_over_processes(gradient, processes)
    skipped = optimizer_step(accelerator, optimizer)
    moco.enqueue(keys2)
    return StepResult((loss1 + loss2).detach(), (spread1 + spread2) / 2, skipped)
