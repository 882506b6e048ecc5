"""What the parts of a run share: its context, and how they print."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from moco_accel.common.console import console
from moco_accel.networks.collectives import rank
from moco_accel.processes.control_group import ControlGroup
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.tiles import Tiles


@dataclass(frozen=True)
class RunContext:
    """A run on this rank.

    Attributes:
        run: The run's folder.
        steps: Steps of this process; `steps.stop` is the number of steps of the run.
    """

    recipe: Recipe
    run: Path
    tiles: Tiles
    steps: range
    accelerator: Accelerator
    control_group: ControlGroup


def log(line: str) -> None:
    """Print a line of rich markup on rank 0."""
    if rank() == 0:
        console.print(line, soft_wrap=True)
