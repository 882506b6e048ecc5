"""Processes in step: a word from each before they send, so that one in trouble leaves no other waiting for it.

A process that runs out of memory no longer takes part in what the others send each other, and they would wait for it
for ever. So before anything is sent each says whether it is well, on the CPU and through a process group of its own: a
GPU's queue is not waited for. Who is not well says so at the next such meeting, whichever that is, and all learn of it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from moco_accel.phases import waiting
from moco_accel.recipe_text import RecipeError

WELL, OUT_OF_MEMORY, FAILED = 0, 1, 2

_TIMEOUT = timedelta(minutes=30)  # a process may compile kernels, or wait for a slow disk


class OthersOutOfMemory(Exception):  # noqa: N818 - it says what happened
    """Another process ran out of memory: this step is void on all of them."""


class Agreement:
    """What all processes of a run tell each other in lockstep. Make it on all of them at once; alone, it is local."""

    def __init__(self, timeout: timedelta = _TIMEOUT) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if several else None
        self._size, self._is_first = dist.get_world_size() if several else 1, not several or dist.get_rank() == 0

    def worst(self, word: int) -> int:
        """The largest of all processes' words."""
        if self._group is None:
            return word
        words = torch.tensor(word)
        with waiting():
            dist.all_reduce(words, dist.ReduceOp.MAX, group=self._group)
        return int(words)

    def all(self, word: int) -> list[int]:
        """Every process's word, by rank."""
        if self._group is None:
            return [word]
        words = [torch.tensor(0) for _ in range(self._size)]
        with waiting():
            dist.all_gather(words, torch.tensor(word), group=self._group)
        return [int(each) for each in words]

    def meet(self) -> None:
        """Say that this process is well. Raises OthersOutOfMemory, on all that are well alike."""
        if self.worst(WELL) == OUT_OF_MEMORY:
            raise OthersOutOfMemory

    def by_first(self, work: Callable[[], object]) -> None:
        """Let the first process do what one alone may. If it fails, all raise: it its error, the others RecipeError."""
        error: Exception | None = None
        try:
            if self._is_first:
                work()
        except Exception as found:
            error = found
        failed = self.worst(WELL if error is None else FAILED) == FAILED
        if error is not None:
            raise error
        if failed:
            raise RecipeError("the first process could not write; its own error says why")


_agreement: Agreement | None = None


def meet_through(agreement: Agreement | None) -> None:
    """Whom `meet` asks from now on; None: nobody, as in a trace or a single step."""
    global _agreement
    _agreement = agreement


def meet() -> None:
    """Before anything is sent: see `Agreement.meet`. Not thread-local, for backward runs in threads of its own."""
    if _agreement is not None:
        _agreement.meet()
