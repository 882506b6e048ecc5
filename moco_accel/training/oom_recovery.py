"""Recover from out of memory: retry the step in smaller micro-batches, on all ranks.

Tiles, random numbers, global batch, negatives, lr and schedule stay the same, and so does the gradient, up to rounding.
Where the micro-batch size changes the result (BatchNorm of a ResNet, `contrast_over: micro_batch`), the run ends
instead, with a message that says what to try.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.networks.moco import MoCo, View
from moco_accel.processes.control_group import HEALTHY, OUT_OF_MEMORY, ControlGroup, PeerOutOfMemory
from moco_accel.recipe.encoder_names import RESNET_NAMES
from moco_accel.recipe.schema import Recipe
from moco_accel.training.step import RetryPolicy, T, Views
from moco_accel.views.augment import AugmentedView

_WHAT_TO_TRY = (
    "--resume continues from the last checkpoint. Try: close other programs that use the GPU, "
    "optimizer.name=adamw_8bit, a smaller encoder.name"
)
_LIBRARY_ERRORS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for an out-of-memory error of torch's allocator or of a CUDA library."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _LIBRARY_ERRORS)
    )


class OutOfMemoryRecovery(RetryPolicy):
    """Halves the micro-batch size of its `recipe` on all ranks when one runs out of memory.

    Args:
        optimizer: The optimizer, after `prepare`.
        on_halved: Called with each new recipe and the ranks that ran out of memory.
    """

    def __init__(
        self,
        recipe: Recipe,
        moco: MoCo,
        optimizer: torch.optim.Optimizer,
        control_group: ControlGroup,
        on_halved: Callable[[Recipe, list[int]], None],
    ) -> None:
        self.recipe, self._moco, self._optimizer = recipe, moco, optimizer
        self._control_group, self._on_halved = control_group, on_halved

    def compute_gradients(self, compute: Callable[[Views], T], views: Views) -> T:
        """Return `compute(views)`, in smaller micro-batches from the first out-of-memory error on.

        Raises:
            UserError: On all ranks, if no smaller micro-batch is possible.
        """
        statistics = _running_statistics(self._moco) if self.recipe.recovers_from_oom else []
        while True:
            size = self.recipe.batch.micro_batch_size
            result, oom_ranks = self._try(partial(compute, (split_view(views[0], size), split_view(views[1], size))))
            if not oom_ranks:
                assert result is not None
                return result
            self.recipe = halve_micro_batch(self.recipe, oom_ranks)
            for buffer, before in statistics:
                buffer.copy_(before)
            self._on_halved(self.recipe, oom_ranks)

    def update_parameters(self, update: Callable[[], object]) -> None:
        """Call `update`, and once more after an out-of-memory error, when torch's cache has been freed.

        Raises:
            UserError: On all ranks, if the update has partly run or runs out of memory again.
        """
        before, had_state = _change_counts(self._optimizer), set(self._optimizer.state)
        _, oom_ranks = self._try(update)
        if not oom_ranks:
            return
        now = _change_counts(self._optimizer)
        is_done = all(new[0] != old[0] for new, old in zip(now, before, strict=True))
        if self._control_group.max_over_ranks(not is_done and now != before):
            raise UserError(
                f"{describe_oom(oom_ranks)} during the optimizer step, which cannot be retried; {_WHAT_TO_TRY}"
            )
        for parameter in set(self._optimizer.state) - had_state if not is_done else ():
            del self._optimizer.state[parameter]  # incomplete state of a first step
        _, oom_ranks = self._try((lambda: None) if is_done else update)
        if oom_ranks:
            raise UserError(f"{describe_oom(oom_ranks)} twice in the optimizer step; {_WHAT_TO_TRY}")

    def _try(self, work: Callable[[], T]) -> tuple[T | None, list[int]]:
        """Return the result of `work` if all ranks have one; else the ranks that ran out of memory."""
        status, result, is_known = HEALTHY, None, False
        try:
            result = work()
        except PeerOutOfMemory:
            is_known = True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if not self.recipe.recovers_from_oom:
                raise UserError(_explain_no_recovery(self.recipe)) from None
            status = OUT_OF_MEMORY
        # outside of `except`, so that the error's frames no longer hold tensors of the step
        if not self.recipe.recovers_from_oom or (
            not is_known and self._control_group.max_over_ranks(status) == HEALTHY
        ):
            return result, []
        result = None
        _free_memory()
        statuses = self._control_group.all_gather(status)
        return None, [rank for rank, each in enumerate(statuses) if each == OUT_OF_MEMORY]


def describe_oom(ranks: list[int]) -> str:
    """Return `out of memory on rank 1`."""
    return "out of memory on " + (f"ranks {', '.join(map(str, ranks))}" if ranks[1:] else f"rank {ranks[0]}")


def split_view(view: View, size: int) -> View:
    """Return the same tiles in the same order in micro-batches of at most `size`."""
    if isinstance(view, AugmentedView):
        return view.split(size)
    return [part for micro_batch in view for part in micro_batch.split(size)]


def halve_micro_batch(recipe: Recipe, oom_ranks: list[int]) -> Recipe:
    """Return the recipe with the largest micro-batch of at most half the size that divides the per-device batch.

    Raises:
        UserError: If the micro-batch size is 1, or a smaller one would change the result.
    """
    batch, per_device, who = recipe.batch, recipe.per_device_batch_size, describe_oom(oom_ranks)
    size = _largest_divisor(per_device, batch.micro_batch_size // 2)
    if size is None:
        raise UserError(
            f"{who} at batch.micro_batch_size=1, the smallest. Try: close other programs that use the GPU, "
            "memory.activation_checkpointing=true, a smaller encoder.image_size or encoder.name"
        )
    changes = {"micro_batch_size": size, "accumulation_steps": per_device // size}
    if batch.contrast_over == "micro_batch" or recipe.encoder.name in RESNET_NAMES:
        why = (
            "a tile is contrasted only with its micro-batch (batch.contrast_over=micro_batch)"
            if batch.contrast_over == "micro_batch"
            else f"BatchNorm in {recipe.encoder.name} uses the statistics of one micro-batch"
        )
        fields = " ".join(f"--set batch.{name}={value}" for name, value in changes.items())
        raise UserError(
            f"{who} with batch.micro_batch_size={batch.micro_batch_size}. A smaller one would change the result: "
            f"{why}. --resume --set memory.activation_checkpointing=true continues with the same result; --resume "
            f"--allow-recipe-change {fields} accepts the change"
        )
    return recipe.model_copy(update={"batch": batch.model_copy(update=changes)})


def _explain_no_recovery(recipe: Recipe) -> str:
    setting, changes = "run.heal_out_of_memory=false", "run.heal_out_of_memory=true"
    if recipe.memory.fully_shard:
        batch = recipe.batch
        size = _largest_divisor(batch.micro_batch_size, batch.micro_batch_size // 2) or 1
        steps = recipe.per_device_batch_size // size
        setting = "memory.fully_shard=true"
        changes = f"batch.micro_batch_size={size} --set batch.accumulation_steps={steps}"
    return (
        f"out of memory, and with {setting} a step cannot be retried. --resume --set {changes} continues from the last "
        "checkpoint"
    )


def _largest_divisor(number: int, limit: int) -> int | None:
    return next((n for n in range(limit, 0, -1) if number % n == 0), None)


def _change_counts(optimizer: torch.optim.Optimizer) -> list[tuple[int, int]]:
    """Return, for each parameter, numbers that grow with its steps and with changes to the rest of its state.

    A fused kernel, or bitsandbytes', changes tensors without a new version, but all count the step first.
    """
    counts = []
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        state = dict(optimizer.state.get(parameter, {}))
        steps = parameter._version + _version(state.pop("step", 0))
        counts.append((steps, sum(_version(value) for value in state.values())))
    return counts


def _version(value: object) -> int:
    return value._version if isinstance(value, Tensor) else value if isinstance(value, int) else 0


def _running_statistics(moco: MoCo) -> list[tuple[Tensor, Tensor]]:
    """Return BatchNorm's buffers with copies, some 100 KiB, so that a retried step counts once."""
    named = moco.named_buffers()
    return [(buffer, buffer.clone()) for name, buffer in named if "running_" in name or "num_batches" in name]


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
