"""The only training step. The trainer runs it, the planner traces it.

It touches no disk, console or command line.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs
from torch import Tensor, nn

from moco_accel.collectives import gather_keys
from moco_accel.moco import MoCo, View
from moco_accel.recipe import Recipe


@dataclass(frozen=True)
class StepResult:
    """Scalars on the device: this process's mean loss over its tiles, and the features' spread (0: collapsed).

    `skipped`: the gradients overflowed fp16, so that this step changed no parameter and nothing was enqueued.
    """

    loss: Tensor
    feature_std: Tensor
    skipped: bool = False


def build_accelerator(recipe: Recipe, cpu: bool = False) -> Accelerator:
    """The Accelerator every run and every trace uses. Accumulation is the step's own, so Accelerate's stays at 1."""
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    precision = recipe.memory.mixed_precision
    accelerator = Accelerator(
        cpu=cpu, mixed_precision=precision, kwargs_handlers=[ddp, AutocastKwargs(cache_enabled=False)]
    )
    # ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment beats the constructor; backward() divides by it
    accelerator.gradient_accumulation_steps = 1
    return accelerator


def prepare(
    accelerator: Accelerator, moco: MoCo, optimizer: torch.optim.Optimizer, on_device: bool = False
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """What `train_step` takes: on the accelerator's device (or there already), wrapped for several processes.

    Gradients exist from the start and are zeroed, never dropped: DDP makes them views of its buckets when it is built,
    and would else keep the first view's beside the buckets until the second view's backward.
    """
    for parameter in moco.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with warnings.catch_warnings():  # torch 2.14 deprecates DDP's broadcast_buffers, which accelerate hands on
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        model, prepared = accelerator.prepare(moco, optimizer, device_placement=[not on_device] * 2)
    return model, prepared


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: tuple[View, View],
    recipe: Recipe,
    momentum_coefficient: float,
) -> StepResult:
    """One optimizer step of MoCo v3 on this process's tiles (algorithm 1 of the paper).

    `model` and `optimizer` are what `prepare` gives; each view is a sequence of `accumulation_steps`
    micro-batches. Keys carry no gradient, so each view's loss is computed and differentiated on its own: exact, and
    only one view's activations live at a time.
    """
    moco = accelerator.unwrap_model(model)
    assert isinstance(moco, MoCo)
    if accelerator.scaler is None or moco.query_side_moved:  # after a skipped step there is nothing new to take in
        moco.update_momentum_side(momentum_coefficient)
    optimizer.zero_grad(set_to_none=False)
    groups = contrast_groups(views, recipe)
    losses, spreads, enqueued = [], [], []
    for number, (view1, view2) in enumerate(groups, start=1):
        with accelerator.autocast():
            keys1, keys2 = gather_keys(moco.keys(view1)), gather_keys(moco.keys(view2))
        enqueued.append(keys2)
        for view, keys, last in ((view1, keys2, False), (view2, keys1, number == len(groups))):
            # gradients are averaged over processes once per step, in the last backward
            with nullcontext() if last else accelerator.no_sync(model):
                loss, spread = model(view, keys)
                accelerator.backward(loss / len(groups))
            losses.append(loss.detach())
            spreads.append(spread)
    skipped = optimizer_step(accelerator, optimizer)
    if accelerator.scaler is not None:
        moco.query_side_moved.fill_(not skipped)
    if not skipped:
        moco.enqueue(torch.cat(enqueued))
    return StepResult(torch.stack(losses).sum() / len(groups), torch.stack(spreads).mean(), skipped)


def optimizer_step(accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> bool:
    """Step; true if the gradient scaler met an overflow and the parameters stayed as they were.

    Accelerate's `step_was_skipped` does not see it when a fused optimizer skips inside its kernel. The scale shows it:
    nothing but an overflow lowers it.
    """
    if accelerator.scaler is None:
        optimizer.step()
        return False
    scale = accelerator.scaler.get_scale()
    optimizer.step()
    return bool(accelerator.scaler.get_scale() < scale)


def contrast_groups(views: tuple[View, View], recipe: Recipe) -> list[tuple[View, View]]:
    """What is contrasted together: the whole batch, or (`contrast_over: micro_batch`) one micro-batch at a time."""
    if recipe.batch.contrast_over == "global_batch":
        return [views]
    return [([a], [b]) for a, b in zip(*views, strict=True)]
