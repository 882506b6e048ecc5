"""What a traced step sends to other processes: counted where torch.distributed's own operations are dispatched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import ScriptObject, Tensor
from torch.utils._pytree import tree_leaves

from moco_accel.processes.control_group import Agreement, meet_through
from planner.trace.events import Mark, Sent, Trace


def sent_by(func: Any, args: Sequence[Any], phase: str, marks: Sequence[Mark]) -> Sent | None:
    """What a dispatched operation sends, in `phase` of the step and after `marks`; None where it is no collective.

    Keys are the only rows that are gathered; divided parameters are gathered flat. What is reduced outside networks
    and backward is the gradients' one buffer; what is reduced within is BatchNorm's.
    """
    if func.namespace != "c10d":
        return None
    leaves = tree_leaves(list(args))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    operation, what = _kind(func.overloadpacket.__name__, tensors, phase)
    group = dist.ProcessGroup.unbox(next(leaf for leaf in leaves if isinstance(leaf, ScriptObject)))
    ranks = dist.get_process_group_ranks(group)
    apart = ranks[1] - ranks[0] if len(ranks) > 1 else 1
    micro_batch = next((mark.index for mark in reversed(marks) if mark.loop != "through"), -1)
    size = max(tensor.numel() * tensor.itemsize for tensor in tensors)
    return Sent(operation, what, size, len(ranks), apart, micro_batch)


def _kind(name: str, tensors: Sequence[Tensor], phase: str) -> tuple[str, str]:
    if "gather" in name:
        return "all-gather", "keys" if tensors[0].dim() > 1 else "parameters"
    if "reduce_scatter" in name:
        return "reduce-scatter", "gradients"
    assert name == "allreduce_", f"{name} is not counted; the step sent something new"
    return "all-reduce", "gradients" if phase == "loss" else "batch_norm"


@contextmanager
def counted_meetings(trace: Trace) -> Iterator[None]:
    """Within, processes that would meet before they send are counted, and not asked."""
    meet_through(_Counting(trace))
    try:
        yield
    finally:
        meet_through(None)


class _Counting(Agreement):
    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def meet(self) -> None:
        self._trace.meetings += 1
