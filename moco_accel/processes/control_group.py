"""Processes in step: a word from each before they send, so that one in trouble leaves no other waiting for it.

A process that runs out of memory no longer takes part in what the others send each other, and they would wait for it
for ever. So before anything is sent each says whether it is well, on the CPU and through a process group of its own: a
GPU's queue is not waited for. Who is not well says so at the next such meeting, whichever that is, and all learn of it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from operator import or_
from typing import Any

import torch
import torch.distributed as dist

from moco_accel.common.errors import UserError
from moco_accel.processes.phases import waiting

WELL, OUT_OF_MEMORY, FAILED = 0, 1, 2

_FEW = 32  # processes, up to which gloo's ring took less time (benchmarks/meetings.py)
_TIMEOUT = timedelta(minutes=30)  # a process may compile kernels, or wait for a slow disk


class OthersOutOfMemory(Exception):  # noqa: N818 - it says what happened
    """Another process ran out of memory: this step is void on all of them."""


class OtherFailed(Exception):  # noqa: N818 - it says what happened
    """Another process cannot do its part of what all do together."""


class Agreement:
    """What all processes of a run tell each other in lockstep. Make it on all of them at once; alone, it is local."""

    def __init__(self, timeout: timedelta = _TIMEOUT) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if several else None
        self._size, self._rank = (dist.get_world_size(), dist.get_rank()) if several else (1, 0)
        self._is_first, self._timeout = self._rank == 0, timeout

    def worst(self, word: int) -> int:
        """The largest of all processes' words."""
        return self._combined(word, max, dist.ReduceOp.MAX)

    def any_of(self, bits: int) -> int:
        """The bits that are set in any process's word."""
        return self._combined(bits, or_, dist.ReduceOp.BOR)

    def _combined(self, word: int, combine: Callable[[int, int], int], operation: Any) -> int:
        if self._group is None:
            return word
        if self._size > _FEW:
            return self._in_rounds(int(word), combine)
        words = torch.tensor(int(word))
        with waiting():
            dist.all_reduce(words, operation, group=self._group)
        return int(words)

    def _in_rounds(self, word: int, combine: Callable[[int, int], int]) -> int:
        """Each round to a process twice as far on: log2(n) messages after another, where gloo's own ring takes 2n."""
        distance = 1
        while distance < self._size:
            said, heard = torch.tensor(word), torch.tensor(0)
            with waiting():
                sent = dist.isend(said, (self._rank + distance) % self._size, group=self._group)
                received = dist.irecv(heard, (self._rank - distance) % self._size, group=self._group)
                for work in (received, sent):
                    assert work is not None, f"rank {self._rank} is not of the group"
                    work.wait(self._timeout)
            word, distance = combine(word, int(heard)), 2 * distance
        return word

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

    def go_on(self) -> None:
        """Within `by_first`, before processes send each other something. Raises OtherFailed once one of them has."""
        if self.worst(WELL) == FAILED:
            raise OtherFailed

    def by_first(self, work: Callable[[], object], others: Callable[[], object] | None = None) -> None:
        """Let the first process do what one alone may, and the others meanwhile what it needs of them.

        If one fails, all raise: it its error, the others UserError.
        """
        error: Exception | None = None
        told = False
        try:
            if self._is_first:
                work()
            elif others is not None:
                others()
        except OtherFailed:
            told = True
        except Exception as found:
            error = found
        failed = told or self.worst(WELL if error is None else FAILED) == FAILED
        if error is not None:
            raise error
        if failed:
            who = "another process failed" if self._is_first else "the first process could not write"
            raise UserError(f"{who}; its own error says why")


_agreement: Agreement | None = None


def meet_through(agreement: Agreement | None) -> None:
    """Whom `meet` asks from now on; None: nobody, as in a trace or a single step."""
    global _agreement
    _agreement = agreement


def meet() -> None:
    """Before anything is sent: see `Agreement.meet`. Not thread-local, for backward runs in threads of its own."""
    if _agreement is not None:
        _agreement.meet()
