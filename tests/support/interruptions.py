"""Runs that stop where a test wants them to."""

from __future__ import annotations

from moco_accel.processes.signals import StopRequest


class StopBefore(StopRequest):
    """Told to stop before a step, as by a signal."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._steps = step

    @property
    def wanted(self) -> bool:
        self._steps -= 1
        return self._steps < 0
