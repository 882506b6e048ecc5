"""Out of memory is not the end: the step is done over with smaller micro-batches, on all processes.

Tiles, random numbers, global batch, negatives, lr and schedule stay, and so does the gradient, up to rounding. Where
the micro-batch is part of the result (BatchNorm in a ResNet sees one; contrast_over: micro_batch), nothing is changed,
and the run ends with what to do.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.networks.moco import MoCo, View
from moco_accel.processes.control_group import OUT_OF_MEMORY, WELL, Agreement, OthersOutOfMemory
from moco_accel.recipe.constants import RESNET_NAMES
from moco_accel.recipe.schema import Recipe
from moco_accel.training.step import Views
from moco_accel.views.augment import AugmentedView

T = TypeVar("T")

_GO_ON = (
    "--resume goes on from the last checkpoint. What helps: close what else uses the card, optimizer.name=adamw_8bit, "
    "a smaller encoder.name"
)
_NOT_HEALED = "out of memory, and with {} a step can't be done over. --resume --set {} goes on from the last checkpoint"
_TEXTS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Also what libraries say that find no memory beside torch's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)
    )


class Healer:
    """A step's `Attempts`. `recipe` is the one in force; `on_halved` hears of each new one, and of which
    ranks lacked memory.

    Make it when the optimizer has been prepared. Raises UserError, on all processes, where nothing is left to halve.
    """

    def __init__(
        self,
        recipe: Recipe,
        moco: MoCo,
        optimizer: torch.optim.Optimizer,
        agreement: Agreement,
        on_halved: Callable[[Recipe, list[int]], None],
    ) -> None:
        self.recipe, self._moco, self._optimizer = recipe, moco, optimizer
        self._agreement, self._on_halved = agreement, on_halved

    def gradients(self, part: Callable[[Views], T], views: Views) -> T:
        """`part(views)`, in smaller micro-batches from the first error on."""
        running = _running_statistics(self._moco) if self.recipe.heals else []
        while True:
            outcome, lacking = self._try(partial(part, self._fitting(views)))
            if not lacking:
                assert outcome is not None
                return outcome
            self.recipe = halved(self.recipe, lacking)
            for buffer, before in running:
                buffer.copy_(before)
            self._on_halved(self.recipe, lacking)

    def update(self, part: Callable[[], object]) -> None:
        """`part()`, once more where it found no memory: the step's activations are gone, but not from torch's cache."""
        before, had_state = _progress(self._optimizer), set(self._optimizer.state)
        _, lacking = self._try(part)
        if not lacking:
            return
        now = _progress(self._optimizer)
        is_done = all(new[0] != old[0] for new, old in zip(now, before, strict=True))
        if self._agreement.worst(not is_done and now != before):
            raise UserError(
                f"{in_words(lacking)} in the midst of the optimizer's step, which cannot be done over; {_GO_ON}"
            )
        for parameter in set(self._optimizer.state) - had_state if not is_done else ():
            del self._optimizer.state[parameter]  # of a first step; half of it would stay
        _, lacking = self._try(_nothing if is_done else part)
        if lacking:
            raise UserError(f"{in_words(lacking)} in the optimizer's step, twice; {_GO_ON}")

    def _try(self, part: Callable[[], T]) -> tuple[T | None, list[int]]:
        """What `part` gives, once all processes have it; else the ranks that ran out of memory."""
        word, outcome, told = WELL, None, False
        try:
            outcome = part()
        except OthersOutOfMemory:
            told = True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if not self.recipe.heals:
                raise UserError(_not_healed(self.recipe)) from None
            word = OUT_OF_MEMORY
        # the error is gone by now, and with its frames what they held of the step
        if not self.recipe.heals or (not told and self._agreement.worst(word) == WELL):
            return outcome, []
        outcome = None
        _free()
        return None, [rank for rank, each in enumerate(self._agreement.all(word)) if each == OUT_OF_MEMORY]

    def _fitting(self, views: Views) -> Views:
        size = self.recipe.batch.micro_batch_size
        first, second = (in_micro_batches(view, size) for view in views)
        return first, second


def _not_healed(recipe: Recipe) -> str:
    if not recipe.memory.fully_shard:
        return _NOT_HEALED.format("run.heal_out_of_memory=false", "run.heal_out_of_memory=true")
    batch = recipe.batch
    size = next((n for n in range(batch.micro_batch_size // 2, 0, -1) if batch.micro_batch_size % n == 0), 1)
    steps = recipe.per_device_batch_size // size
    fields = f"batch.micro_batch_size={size} --set batch.accumulation_steps={steps}"
    return _NOT_HEALED.format("memory.fully_shard=true", fields)


def _nothing() -> None:
    """What is done already."""


def in_words(ranks: list[int]) -> str:
    """Who ran out of memory."""
    return "out of memory on " + (f"ranks {', '.join(map(str, ranks))}" if ranks[1:] else f"rank {ranks[0]}")


def in_micro_batches(view: View, size: int) -> View:
    """The same tiles in the same order, at most `size` at a time; `view` itself where it fits."""
    if isinstance(view, AugmentedView):
        return view.in_micro_batches(size)
    return [part for micro_batch in view for part in micro_batch.split(size)]


def halved(recipe: Recipe, lacking: list[int]) -> Recipe:
    """The largest micro-batch, of at most half, that divides the batch of a device. Raises UserError."""
    batch, per_device = recipe.batch, recipe.per_device_batch_size
    who = in_words(lacking)
    size = next((n for n in range(batch.micro_batch_size // 2, 0, -1) if per_device % n == 0), None)
    if size is None:
        raise UserError(
            f"{who} at batch.micro_batch_size=1, the smallest. What helps: close what else uses the card, "
            "memory.activation_checkpointing=true, a smaller encoder.image_size or encoder.name"
        )
    new = {"micro_batch_size": size, "accumulation_steps": per_device // size}
    if batch.contrast_over == "micro_batch" or recipe.encoder.name in RESNET_NAMES:
        why = (
            "a tile is contrasted with its micro-batch alone (batch.contrast_over=micro_batch)"
            if batch.contrast_over == "micro_batch"
            else f"BatchNorm in {recipe.encoder.name} sees a micro-batch at a time"
        )
        fields = " ".join(f"--set batch.{name}={value}" for name, value in new.items())
        raise UserError(
            f"{who} with batch.micro_batch_size={batch.micro_batch_size}. {why}: half of it would be another result. "
            f"--resume --set memory.activation_checkpointing=true goes on with the same; --resume "
            f"--allow-recipe-change {fields} accepts the other"
        )
    return recipe.model_copy(update={"batch": batch.model_copy(update=new)})


def _progress(optimizer: torch.optim.Optimizer) -> list[tuple[int, int]]:
    """Of each parameter, numbers that grow with every step it has made, and with every change to the rest of its state.

    A fused kernel changes tensors without their knowledge, as bitsandbytes' do, but all of them count steps before it.
    """
    found = []
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        state = dict(optimizer.state.get(parameter, {}))
        steps = parameter._version + _changes(state.pop("step", 0))
        found.append((steps, sum(_changes(value) for value in state.values())))
    return found


def _changes(value: object) -> int:
    return value._version if isinstance(value, Tensor) else value if isinstance(value, int) else 0


def _running_statistics(moco: MoCo) -> list[tuple[Tensor, Tensor]]:
    """BatchNorm's buffers, and copies: some hundred KiB that a step done over must not count twice."""
    named = moco.named_buffers()
    return [(buffer, buffer.clone()) for name, buffer in named if "running_" in name or "num_batches" in name]


def _free() -> None:
    """What the step has left, to the card."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
