"""Random views for a step, and the gradients of a module."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from moco_accel.recipe.schema import Recipe


def make_views(recipe: Recipe, seed: int = 0) -> Tensor:
    """Return both views of a global batch [2, batch, bands, size, size]."""
    size = recipe.encoder.image_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, recipe.batch.global_batch_size, recipe.encoder.bands, size, size, generator=generator)


def own_views(recipe: Recipe, accelerator: Accelerator, seed: int = 0) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return this rank's share of both views, in micro-batches."""
    first, second = make_views(recipe, seed).chunk(accelerator.num_processes, dim=1)[accelerator.process_index]
    return first.split(recipe.batch.micro_batch_size), second.split(recipe.batch.micro_batch_size)


def all_gradients(module: nn.Module) -> Tensor:
    """Return all gradients of a module as one vector."""
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
