"""The only training step. The trainer runs it, the planner traces it.

It touches no disk, console or command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import Tensor

from moco_accel.networks.collectives import average_over_processes, gather_keys
from moco_accel.networks.moco import MoCo, View
from moco_accel.processes.phases import enter
from moco_accel.recipe.schema import Recipe

Views = tuple[View, View]
T = TypeVar("T")


@dataclass(frozen=True)
class StepResult:
    """Scalars on the device: this process's mean loss over its tiles, and the features' spread (0: collapsed).

    `skipped`: the gradients overflowed fp16, so that this step changed no parameter and nothing was enqueued.
    """

    loss: Tensor
    feature_std: Tensor
    skipped: bool = False


@dataclass(frozen=True)
class Contrast:
    """Scalars on the device as in StepResult, and view 2's keys of all processes, for the queue."""

    loss: Tensor
    feature_std: Tensor
    keys: Tensor


def build_accelerator(recipe: Recipe, cpu: bool = False, trackers_folder: str | None = None) -> Accelerator:
    """The Accelerator every run and every trace uses. Accumulation is the step's own, so Accelerate's stays at 1.

    A run names a folder for what `run.trackers` keep on this machine.
    """
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=recipe.memory.mixed_precision,
        kwargs_handlers=[AutocastKwargs(cache_enabled=False)],
        log_with=list(recipe.run.trackers) or None if trackers_folder is not None else None,
        project_dir=trackers_folder,
    )
    # ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment beats the constructor; backward() divides by it
    accelerator.gradient_accumulation_steps = 1
    return accelerator


def prepare(
    accelerator: Accelerator, moco: MoCo, optimizer: torch.optim.Optimizer, on_device: bool = False
) -> tuple[MoCo, torch.optim.Optimizer]:
    """What `train_step` takes: on the accelerator's device (or there already), with room for all gradients.

    Divided over a node's devices if the recipe says so (`memory.fully_shard`).

    DistributedDataParallel is not used: it sends gradients in the midst of a backward, and a process that runs out of
    memory there leaves the others waiting for ever. The step sends them at once, where all processes can meet.
    """
    names = {id(parameter): name for name, parameter in moco.named_parameters()}
    for group in optimizer.param_groups:  # division puts parts in the place of parameters, which nothing may hold then
        group["params"] = [names[id(parameter)] for parameter in group["params"]]
    if accelerator.num_processes > 1:
        moco.divide(accelerator.device.type)
    model = accelerator.prepare_model(moco, device_placement=not on_device, evaluation_mode=True)
    moco.make_room_for_gradients()
    parameters = dict(moco.named_parameters()) | moco.trained
    for group in optimizer.param_groups:
        group["params"] = [parameters[name] for name in group["params"]]
    prepared = accelerator.prepare_optimizer(optimizer, device_placement=not on_device)
    return model, prepared


class Attempts(Protocol):
    """How a step's parts are tried; `healing.Healer` tries them again after an out-of-memory error."""

    def gradients(self, part: Callable[[Views], T], views: Views) -> T:
        """`part(views)`, which may be done over: on the same tiles, in smaller micro-batches."""

    def update(self, part: Callable[[], object]) -> None:
        """`part()`, which changes parameters in place and may be done once."""


class OneAttempt:
    """Errors are the caller's."""

    def gradients(self, part: Callable[[Views], T], views: Views) -> T:
        return part(views)

    def update(self, part: Callable[[], object]) -> None:
        part()


def train_step(
    accelerator: Accelerator,
    moco: MoCo,
    optimizer: torch.optim.Optimizer,
    views: Views,
    recipe: Recipe,
    momentum_coefficient: float,
    attempts: Attempts | None = None,
) -> StepResult:
    """One optimizer step of MoCo v3 on this process's tiles (algorithm 1 of the paper).

    `moco` and `optimizer` are what `prepare` gives; each view is a sequence of `accumulation_steps` micro-batches.
    Gradients are averaged over processes once, when both views have had their backward.
    """
    enter("the momentum update")
    attempts = attempts or OneAttempt()
    moved = moco.momentum_version

    def compute_gradients(views: Views) -> Contrast:
        # after a step that the scaler skipped there is nothing new to take in; one done over has taken it in
        if moco.momentum_version == moved and (accelerator.scaler is None or moco.query_side_moved):
            moco.update_momentum_side(momentum_coefficient)
        return accumulate_gradients(accelerator, moco, views, recipe)

    contrast = attempts.gradients(compute_gradients, views)
    skipped = optimizer_step(accelerator, optimizer, attempts)
    if accelerator.scaler is not None:
        moco.query_side_moved.fill_(not skipped)
    if not skipped:
        moco.enqueue(contrast.keys)
    return StepResult(contrast.loss, contrast.feature_std, skipped)


def accumulate_gradients(accelerator: Accelerator, moco: MoCo, views: Views, recipe: Recipe) -> Contrast:
    """Gradients of both views' losses, averaged over processes, in place of those that were there.

    Keys carry no gradient, so each view's loss is computed and differentiated on its own: exact, and only one view's
    activations live at a time.
    """
    moco.gradient.zero_()
    groups = contrast_groups(views, recipe)
    losses, spreads, enqueued = [], [], []
    for view1, view2 in groups:
        enter("the keys")
        with accelerator.autocast():
            keys1, keys2 = gather_keys(moco.keys(view1)), gather_keys(moco.keys(view2))
        enqueued.append(keys2)
        for name, view, keys in (("view 1", view1, keys2), ("view 2", view2, keys1)):
            enter(f"{name}'s forward and backward")
            loss, spread = moco(view, keys)
            accelerator.backward(loss / len(groups))
            losses.append(loss.detach())
            spreads.append(spread)
    enter("the gradients' average")
    for gradient, processes in moco.gradients():
        average_over_processes(gradient, processes)
    return Contrast(torch.stack(losses).sum() / len(groups), torch.stack(spreads).mean(), torch.cat(enqueued))


def optimizer_step(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, attempts: Attempts | None = None
) -> bool:
    """Step; true if the gradient scaler met an overflow and the parameters stayed as they were.

    Accelerate's `step_was_skipped` does not see it when a fused optimizer skips inside its kernel. The scale shows it:
    nothing but an overflow lowers it.
    """
    enter("the optimizer's step")
    attempts = attempts or OneAttempt()
    scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 0.0
    attempts.update(optimizer.step)
    return accelerator.scaler is not None and bool(accelerator.scaler.get_scale() < scale)


def contrast_groups(views: tuple[View, View], recipe: Recipe) -> list[tuple[View, View]]:
    """What is contrasted together: the whole batch, or (`contrast_over: micro_batch`) one micro-batch at a time."""
    if recipe.batch.contrast_over == "global_batch":
        return [views]
    return [([a], [b]) for a, b in zip(*views, strict=True)]
