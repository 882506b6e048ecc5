"""A traced step: what was allocated and freed, in order, and what each tensor was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

Event = tuple[int, int]
"""(tensor number, bytes): bytes > 0 allocates, 0 frees. A number may be used again once freed."""


@dataclass
class TracedTensor:
    """One storage. `shape` is that of the tensor that first held it, `operation` what made it and where."""

    size_bytes: int
    shape: tuple[int, ...]
    operation: str
    phase: str
    category: str


@dataclass(frozen=True)
class Mark:
    """Something begins at `events[event]`.

    `loop` is "keys", "forward" or "recomputed": micro-batch `index` is asked for, to that end; "through": an encoder is
    through with one; "backward": the features of one have their gradient.
    """

    event: int
    loop: str
    index: int


class Counted(NamedTuple):
    """An operation's floating-point operations. `again`: part of a micro-batch's second way through the encoder.

    `part`: "encoder", "momentum_encoder", "heads", "loss" or "augmentation"; a backward's as its forward's.
    """

    flops: int
    again: bool
    part: str


class Sent(NamedTuple):
    """What processes make together: `size_bytes` of what is reduced, or of what is gathered from all.

    `processes` take part, the first and each `apart`-th after it. `micro_batch` is the one that is worked on, or was
    last; -1 is none.
    """

    operation: str
    what: str
    size_bytes: int
    processes: int
    apart: int
    micro_batch: int


@dataclass
class Trace:
    """A step's events. `tensors[number]` describes the storage that an event speaks of.

    `events[:step_start]` puts the model on the device; the rest is one optimizer step. `meetings`: how often processes
    would have met before they sent something.
    """

    events: list[Event] = field(default_factory=list)
    tensors: list[TracedTensor] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    flops: list[Counted] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    meetings: int = 0
    step_start: int = 0
