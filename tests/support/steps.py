"""Steps on random views, and the gradients of a module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import StepResult, build_accelerator, prepare, train_step


class Training:
    """Networks and their optimizer on the CPU, built as a run builds them and ready for steps.

    With `scale`, it has a gradient scaler (Accelerate does not support fp16 there). `change` gets the networks before
    they are prepared.
    """

    def __init__(
        self, recipe: Recipe, scale: float | None = None, change: Callable[[MoCo], object] = lambda moco: None
    ) -> None:
        AcceleratorState._reset_state()  # it allows one precision per process
        torch.manual_seed(0)
        self.recipe = recipe
        self.accelerator: Accelerator = build_accelerator(recipe, cpu=True)
        if scale is not None:
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        self.moco: MoCo = build_moco(recipe)
        change(self.moco)
        self.model, self.optimizer = prepare(self.accelerator, self.moco, build_optimizer(recipe, self.moco))

    def step(self, views: Tensor, momentum_coefficient: float = 0.9, sizes: int | list[int] = 0) -> StepResult:
        """Run a step on both views of the tiles, in micro-batches of the recipe's size or of `sizes`."""
        first, second = (view.split(sizes or self.recipe.batch.micro_batch_size) for view in views)
        batches = first, second
        return train_step(self.accelerator, self.model, self.optimizer, batches, self.recipe, momentum_coefficient)


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
