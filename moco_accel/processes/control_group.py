"""Exchange small integers between ranks on the CPU, so that a rank that fails leaves no other waiting.

A rank that runs out of memory misses the next collective, and the other ranks would wait for it forever. Therefore all
ranks exchange their status before each collective, through a gloo process group that does not wait for a GPU's queue.
A rank that failed reports it at its next exchange, and every rank learns of it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from operator import or_
from typing import Any

import torch
import torch.distributed as dist

from moco_accel.common.errors import UserError
from moco_accel.processes.phases import waiting_for_peers

HEALTHY, OUT_OF_MEMORY, FAILED = 0, 1, 2
_MAX_RANKS_OF_ALL_REDUCE = 32  # above it, gloo's ring takes longer than rounds (benchmarks/status_exchange.py)
TIMEOUT = timedelta(minutes=30)  # as torch's default: a rank may compile kernels, or wait for a slow disk


class PeerOutOfMemory(Exception):  # noqa: N818 - not an error of this rank
    """Another rank ran out of memory, so this step is void on every rank."""


class PeerFailed(Exception):  # noqa: N818 - not an error of this rank
    """Another rank failed during work that all ranks do together."""


class ControlGroup:
    """Collectives of integers on the CPU, for control flow that all ranks share.

    Create it on all ranks at once. Without `torch.distributed`, or with one rank, every operation is local.
    """

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT) if several else None
        self._size, self._rank = (dist.get_world_size(), dist.get_rank()) if several else (1, 0)

    def max_over_ranks(self, value: int) -> int:
        """Return the largest `value` of any rank."""
        return self._combine(value, max, dist.ReduceOp.MAX)

    def or_over_ranks(self, bits: int) -> int:
        """Return the bits that are set on any rank."""
        return self._combine(bits, or_, dist.ReduceOp.BOR)

    def _combine(self, value: int, combine: Callable[[int, int], int], operation: Any) -> int:
        if self._group is None:
            return value
        if self._size > _MAX_RANKS_OF_ALL_REDUCE:
            return self._combine_in_rounds(int(value), combine)
        values = torch.tensor(int(value))
        with waiting_for_peers():
            dist.all_reduce(values, operation, group=self._group)
        return int(values)

    def _combine_in_rounds(self, value: int, combine: Callable[[int, int], int]) -> int:
        """Send to a rank at twice the distance in each round: log2(n) messages in sequence; gloo's ring takes 2n."""
        distance = 1
        while distance < self._size:
            own, received = torch.tensor(value), torch.tensor(0)
            with waiting_for_peers():
                send = dist.isend(own, (self._rank + distance) % self._size, group=self._group)
                receive = dist.irecv(received, (self._rank - distance) % self._size, group=self._group)
                for work in (receive, send):
                    assert work is not None, f"rank {self._rank} is not in the group"
                    work.wait(TIMEOUT)
            value, distance = combine(value, int(received)), 2 * distance
        return value

    def all_gather(self, value: int) -> list[int]:
        """Return the values of all ranks, by rank."""
        if self._group is None:
            return [value]
        values = [torch.tensor(0) for _ in range(self._size)]
        with waiting_for_peers():
            dist.all_gather(values, torch.tensor(value), group=self._group)
        return [int(each) for each in values]

    def exchange_status(self) -> None:
        """Report that this rank is healthy. Raise PeerOutOfMemory if another rank ran out of memory."""
        if self.max_over_ranks(HEALTHY) == OUT_OF_MEMORY:
            raise PeerOutOfMemory

    def raise_if_peer_failed(self) -> None:
        """Exchange the status before a collective inside `run_on_rank_zero`."""
        if self.max_over_ranks(HEALTHY) == FAILED:
            raise PeerFailed

    def run_on_rank_zero(self, work: Callable[[], object], others: Callable[[], object] | None = None) -> None:
        """Run `work` on rank 0, and `others` on the other ranks at the same time. If one rank fails, every rank raises.

        Raises:
            UserError: If another rank failed. The rank that failed raises its own error.
        """
        error: Exception | None = None
        try:
            if self._rank == 0:
                work()
            elif others is not None:
                others()
        except Exception as raised:
            error = raised
        peer_failed = isinstance(error, PeerFailed)
        failed = peer_failed or self.max_over_ranks(HEALTHY if error is None else FAILED) == FAILED
        if error is not None and not peer_failed:
            raise error
        if failed:
            what = "another rank failed" if self._rank == 0 else "rank 0 could not write"
            raise UserError(f"{what}; see its error message")


_current: ControlGroup | None = None


def use_control_group(control_group: ControlGroup | None) -> None:
    """Set the group that `exchange_status` uses; None turns the exchange off."""
    global _current
    _current = control_group


def exchange_status() -> None:
    """Call `ControlGroup.exchange_status` of the group in use. It is global: backward runs in threads of its own."""
    if _current is not None:
        _current.exchange_status()
