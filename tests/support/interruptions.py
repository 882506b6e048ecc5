"""Stop a run before a given step."""

from __future__ import annotations

from moco_accel.processes.signals import StopRequest


class StopBefore(StopRequest):
    """A stop request that comes before a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._steps = step

    @property
    def is_requested(self) -> bool:
        self._steps -= 1
        return self._steps < 0
