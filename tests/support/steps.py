"""Views for a step, and the gradients that it leaves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moco_accel.recipe.schema import Recipe


def make_views(recipe: Recipe, seed: int = 0) -> Tensor:
    """[2, batch, bands, size, size]"""
    size = recipe.encoder.image_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, recipe.batch.global_batch_size, recipe.encoder.bands, size, size, generator=generator)


def all_gradients(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
