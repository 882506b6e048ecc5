"""A traced step: what was allocated and freed, in order, and what each tensor was."""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.allocator import Event


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


@dataclass
class Trace:
    """A step's events. `tensors[number]` describes the storage that an event speaks of.

    `events[:step_start]` puts the model on the device; the rest is one optimizer step. `flops` holds each operation's
    floating-point operations, and whether it is part of a micro-batch's second way through the encoder.
    """

    events: list[Event] = field(default_factory=list)
    tensors: list[TracedTensor] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    flops: list[tuple[int, bool]] = field(default_factory=list)
    step_start: int = 0
