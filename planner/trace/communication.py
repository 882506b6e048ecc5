"""Record the collectives of a traced step where torch.distributed dispatches them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import ScriptObject, Tensor
from torch.utils._pytree import tree_leaves

from moco_accel.processes.control_group import ControlGroup, use_control_group
from planner.trace.events import Collective, Mark, Trace


def find_collective(func: Any, args: Sequence[Any], phase: str, marks: Sequence[Mark]) -> Collective | None:
    """Return the collective that a dispatched operation performs; None if it is not one.

    Only keys are gathered as rows; sharded parameters are gathered flat. An all-reduce outside networks and backward is
    the gradient buffer's, one inside is BatchNorm's.

    Args:
        phase: The part of the step that runs.
        marks: The marks so far.
    """
    if func.namespace != "c10d":
        return None
    leaves = tree_leaves(list(args))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    operation, what = _kind(func.overloadpacket.__name__, tensors, phase)
    group = dist.ProcessGroup.unbox(next(leaf for leaf in leaves if isinstance(leaf, ScriptObject)))
    ranks = dist.get_process_group_ranks(group)
    apart = ranks[1] - ranks[0] if len(ranks) > 1 else 1
    micro_batch = next((mark.index for mark in reversed(marks) if mark.kind != "forward end"), -1)
    size = max(tensor.numel() * tensor.itemsize for tensor in tensors)
    return Collective(operation, what, size, len(ranks), apart, micro_batch)


def _kind(name: str, tensors: Sequence[Tensor], phase: str) -> tuple[str, str]:
    if "gather" in name:
        return "all-gather", "keys" if tensors[0].dim() > 1 else "parameters"
    if "reduce_scatter" in name:
        return "reduce-scatter", "gradients"
    assert name == "allreduce_", f"the step calls {name}, which is not counted"
    return "all-reduce", "gradients" if phase == "loss" else "batch_norm"


@contextmanager
def count_status_exchanges(trace: Trace) -> Iterator[None]:
    """Count the status exchanges before collectives in `trace`, without performing them."""
    use_control_group(_CountingControlGroup(trace))
    try:
        yield
    finally:
        use_control_group(None)


class _CountingControlGroup(ControlGroup):
    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def exchange_status(self) -> None:
        self._trace.status_exchanges += 1
