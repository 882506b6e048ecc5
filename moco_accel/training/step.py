"""The training step of MoCo v3, which the trainer runs and the planner traces. It uses no disk or console."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import Tensor

from moco_accel.networks.collectives import average_over_processes, gather_keys
from moco_accel.networks.moco import MoCo, View
from moco_accel.processes.phases import enter_phase
from moco_accel.recipe.schema import Recipe

Views = tuple[View, View]
T = TypeVar("T")


@dataclass(frozen=True)
class StepResult:
    """Result of one optimizer step on this rank.

    Attributes:
        loss: Mean loss over this rank's tiles, a scalar on the device.
        feature_std: Spread of the features, a scalar on the device; 0 if collapsed.
        skipped: True if gradients overflowed fp16; parameters and queue are then unchanged.
    """

    loss: Tensor
    feature_std: Tensor
    skipped: bool = False


class RetryPolicy:
    """Runs the two parts of a step. This one raises every error; `OutOfMemoryRecovery` retries them."""

    def compute_gradients(self, compute: Callable[[Views], T], views: Views) -> T:
        """Return `compute(views)`; a retry may pass the same tiles in smaller micro-batches."""
        return compute(views)

    def update_parameters(self, update: Callable[[], object]) -> None:
        """Call `update`, which changes parameters in place."""
        update()


def build_accelerator(recipe: Recipe, cpu: bool = False, trackers_folder: str | None = None) -> Accelerator:
    """Build the Accelerator of a run or a trace; the step accumulates gradients itself, so Accelerate must not.

    Args:
        trackers_folder: Folder for the local files of `run.trackers`; None starts no trackers.
    """
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=recipe.memory.mixed_precision,
        kwargs_handlers=[AutocastKwargs(cache_enabled=False)],
        log_with=list(recipe.run.trackers) or None if trackers_folder is not None else None,
        project_dir=trackers_folder,
    )
    # ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment overrides the constructor; backward() divides by it
    accelerator.gradient_accumulation_steps = 1
    return accelerator


def prepare(
    accelerator: Accelerator, moco: MoCo, optimizer: torch.optim.Optimizer, on_device: bool = False
) -> tuple[MoCo, torch.optim.Optimizer]:
    """Return model and optimizer as `train_step` needs them: on the device, sharded if the recipe says so.

    DistributedDataParallel is not used. It averages gradients during backward, where a rank that runs out of memory
    leaves the others waiting forever. The step averages them at once, after ranks have exchanged their status.

    Args:
        on_device: The model is on the device already.
    """
    names = {id(parameter): name for name, parameter in moco.named_parameters()}
    for group in optimizer.param_groups:  # sharding replaces parameters; a reference would keep the full ones
        group["params"] = [names[id(parameter)] for parameter in group["params"]]
    if accelerator.num_processes > 1:
        moco.shard(accelerator.device.type)
    model = accelerator.prepare_model(moco, device_placement=not on_device, evaluation_mode=True)
    moco.allocate_gradients()
    parameters = dict(moco.named_parameters()) | moco.optimized_parameters
    for group in optimizer.param_groups:
        group["params"] = [parameters[name] for name in group["params"]]
    prepared = accelerator.prepare_optimizer(optimizer, device_placement=not on_device)
    return model, prepared


def train_step(
    accelerator: Accelerator,
    moco: MoCo,
    optimizer: torch.optim.Optimizer,
    views: Views,
    recipe: Recipe,
    momentum_coefficient: float,
    retry_policy: RetryPolicy | None = None,
) -> StepResult:
    """Run one optimizer step of MoCo v3 on this rank's tiles (arXiv 2104.02057, algorithm 1).

    Args:
        moco: From `prepare`, as `optimizer`.
        views: Both views of the tiles, each of `accumulation_steps` micro-batches.
        momentum_coefficient: m of the paper.
        retry_policy: What to do when memory runs out; by default, raise.
    """
    retry_policy = retry_policy or RetryPolicy()
    enter_phase("momentum update")
    version = moco.momentum_version

    def update_and_contrast(views: Views) -> tuple[Tensor, Tensor, Tensor]:
        is_retry = moco.momentum_version != version
        # a step that the scaler skipped has not changed the encoder
        if not is_retry and (accelerator.scaler is None or moco.query_side_moved):
            moco.update_momentum_encoder(momentum_coefficient)
        return compute_gradients(accelerator, moco, views, recipe)

    loss, feature_std, keys = retry_policy.compute_gradients(update_and_contrast, views)
    skipped = optimizer_step(accelerator, optimizer, retry_policy)
    if accelerator.scaler is not None:
        moco.query_side_moved.fill_(not skipped)
    if not skipped:
        moco.enqueue(keys)
    return StepResult(loss, feature_std, skipped)


def compute_gradients(
    accelerator: Accelerator, moco: MoCo, views: Views, recipe: Recipe
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of both views' losses, averaged over ranks, into the gradient buffer.

    Keys carry no gradient, so each view's loss has its own backward: the gradient is exact, and the activations of one
    view exist at a time.

    Returns:
        Loss and spread as in `StepResult`, and view 2's keys of all ranks, for the queue.
    """
    moco.gradient_buffer.zero_()
    groups = contrast_groups(views, recipe)
    losses, spreads, enqueued = [], [], []
    for view1, view2 in groups:
        keys1, keys2 = gather_keys_of_views(accelerator, moco, view1, view2)
        enqueued.append(keys2)
        for name, view, keys in (("view 1", view1, keys2), ("view 2", view2, keys1)):
            enter_phase(f"forward and backward of {name}")
            loss, spread = moco(view, keys)
            accelerator.backward(loss / len(groups))
            losses.append(loss.detach())
            spreads.append(spread)
    average_gradients(moco)
    return torch.stack(losses).sum() / len(groups), torch.stack(spreads).mean(), torch.cat(enqueued)


def contrast_groups(views: Views, recipe: Recipe) -> list[Views]:
    """Return the views that are contrasted together: the whole batch, or with `contrast_over: micro_batch` each one."""
    if recipe.batch.contrast_over == "global_batch":
        return [views]
    return [([a], [b]) for a, b in zip(*views, strict=True)]


def gather_keys_of_views(accelerator: Accelerator, moco: MoCo, view1: View, view2: View) -> tuple[Tensor, Tensor]:
    """Return the keys of each view, gathered from all ranks."""
    enter_phase("keys")
    with accelerator.autocast():
        return gather_keys(moco.keys(view1)), gather_keys(moco.keys(view2))


def average_gradients(moco: MoCo) -> None:
    """Average the gradient buffer over ranks, in place."""
    enter_phase("gradient averaging")
    for gradient, group in moco.gradients_by_group():
        average_over_processes(gradient, group)


def optimizer_step(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, retry_policy: RetryPolicy | None = None
) -> bool:
    """Update the parameters; return True if the gradient scaler skipped the step because of an overflow.

    Accelerate's `step_was_skipped` misses a fused optimizer that skips inside its kernel. Only an overflow lowers the
    scale, so a lower scale shows it.
    """
    enter_phase("optimizer step")
    scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 0.0
    (retry_policy or RetryPolicy()).update_parameters(optimizer.step)
    return accelerator.scaler is not None and bool(accelerator.scaler.get_scale() < scale)
