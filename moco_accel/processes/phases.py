"""Record the phase of this process and count its progress, for the watchdog."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

START = "start"
DATA = "data"
CHECKPOINT = "checkpoint"
EVALUATION = "evaluation"


class Progress:
    """Progress of this process: written by the main or a backward thread, read by the watchdog's.

    Attributes:
        waits: True while the process waits for other ranks.
        current_tiles: Returns (loader process id, tile index) of the tiles that are being read.
    """

    def __init__(self) -> None:
        self.phase, self.ticks, self.waits = START, 0, False
        self.current_tiles: Callable[[], list[tuple[int, int]]] = list


progress = Progress()


def enter_phase(phase: str) -> None:
    """Set the phase of this process."""
    progress.phase = phase
    tick()


def tick() -> None:
    """Count one work item of the phase, such as a micro-batch."""
    progress.ticks += 1


@contextmanager
def waiting_for_peers() -> Iterator[None]:
    """Mark this process as waiting for other ranks, so that the watchdog does not blame it."""
    before, progress.waits = progress.waits, True
    try:
        yield
    finally:
        progress.waits = before
        tick()
