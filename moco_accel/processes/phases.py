"""What this process is at: a word and a count of what it has done, for whoever watches it. Costs nothing to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

START = "start"
DATA = "data"
CHECKPOINT = "checkpoint"
EVALUATION = "evaluation"


class Progress:
    """Written by the main thread, or by a backward's, and read by another one: each attribute is set at once."""

    def __init__(self) -> None:
        self.phase, self.ticks, self.waits = START, 0, False
        self.reading: Callable[[], list[tuple[int, int]]] = list


progress = Progress()
"""This process's."""


def enter(phase: str) -> None:
    """From here on this process is in `phase`."""
    progress.phase = phase
    tick()


def tick() -> None:
    """Something has been done in this phase, as a micro-batch is."""
    progress.ticks += 1


def wait_for_data(reading: Callable[[], list[tuple[int, int]]]) -> None:
    """Enter the phase in which tiles are read; `reading` tells which process is at which, should that go wrong."""
    progress.reading = reading
    enter(DATA)


@contextmanager
def waiting() -> Iterator[None]:
    """Within, this process waits for others: if that takes long, it isn't to blame."""
    before, progress.waits = progress.waits, True
    try:
        yield
    finally:
        progress.waits = before
        tick()
