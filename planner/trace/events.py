"""The record of a traced step: allocations and frees in order, what each tensor is, operations and collectives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import BaseModel

Event = tuple[int, int]
"""(tensor number, bytes): bytes > 0 allocates, 0 frees. A number may be used again once freed."""


@dataclass
class TracedTensor:
    """One storage, and the first tensor, operation and part of the step that used it.

    `category` is one of `memory_estimate.CATEGORIES`, or "forward" until it is freed.
    """

    size_bytes: int
    shape: tuple[int, ...]
    operation: str
    phase: str
    category: str


@dataclass(frozen=True)
class Mark:
    """A point in the step, before `events[event]`.

    Attributes:
        kind: "keys", "forward" or "recomputed": micro-batch `index` is requested for that pass. "forward end": an
            encoder finished a micro-batch. "backward": the features of one received their gradient.
        index: The micro-batch; -1 if it is not known.
    """

    event: int
    kind: str
    index: int


class OperationFlops(NamedTuple):
    """Floating-point operations of one operation.

    Attributes:
        recomputed: The operation belongs to a micro-batch's second forward pass.
        part: "encoder", "momentum_encoder", "heads", "loss" or "augmentation"; backward counts as its forward's part.
    """

    flops: int
    recomputed: bool
    part: str


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
        operation: "all-reduce", "all-gather" or "reduce-scatter".
        what: "keys", "batch_norm", "gradients" or "parameters".
        size_bytes: The whole tensor that is reduced, or gathered from all processes.
        apart: Distance between consecutive ranks of the group.
        micro_batch: The current or last micro-batch; -1 for none.
    """

    operation: str
    what: str
    size_bytes: int
    processes: int
    apart: int
    micro_batch: int


class CollectiveTotal(BaseModel, frozen=True):
    """All collectives of one kind in an optimizer step; `size_bytes` is their sum. Other fields as in `Collective`."""

    operation: str
    what: str
    processes: int
    apart: int
    times: int
    size_bytes: int


@dataclass
class Trace:
    """The events of a step.

    Attributes:
        events: `events[:step_start]` put the model on the device; the rest is one optimizer step or more.
        tensors: `tensors[number]` describes the storage of an event.
        status_exchanges: How often all processes would exchange their status before a collective.
    """

    events: list[Event] = field(default_factory=list)
    tensors: list[TracedTensor] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    flops: list[OperationFlops] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    status_exchanges: int = 0
    step_start: int = 0
