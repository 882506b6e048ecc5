"""MoCo v3's step as in the paper, both views at once and without micro-batches. For comparison only."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from moco_accel.networks.moco import MoCo, View
from moco_accel.recipe.schema import Recipe
from moco_accel.training.step import StepResult, average_gradients, gather_keys_of_views, optimizer_step


def both_views_step(
    accelerator: Accelerator,
    moco: MoCo,
    optimizer: torch.optim.Optimizer,
    views: tuple[View, View],
    recipe: Recipe,
    momentum_coefficient: float,
) -> StepResult:
    """Compute the result of `train_step` for `contrast_over: global_batch` with both views' activations alive at once.

    Source: algorithm 1 of arXiv 2104.02057.
    """
    moco.update_momentum_encoder(momentum_coefficient)
    moco.gradient_buffer.zero_()
    view1, view2 = ([torch.cat([view[index] for index in range(len(view))])] for view in views)
    keys1, keys2 = gather_keys_of_views(accelerator, moco, view1, view2)
    loss1, spread1 = moco(view1, keys2)
    loss2, spread2 = moco(view2, keys1)
    accelerator.backward(loss1 + loss2)
    average_gradients(moco)
    skipped = optimizer_step(accelerator, optimizer)
    moco.enqueue(keys2)
    return StepResult((loss1 + loss2).detach(), (spread1 + spread2) / 2, skipped)
