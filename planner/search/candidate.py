"""Recipes with their predicted memory and time. Imports no torch, so that cached plans load fast."""

from __future__ import annotations

from importlib.metadata import version

from pydantic import BaseModel

from moco_accel.recipe.hardware_sections import Planned
from moco_accel.recipe.schema import Recipe
from planner.cards.card import MIB
from planner.memory.memory_estimate import MemoryEstimate
from planner.trace.events import CollectiveTotal

MIN_EFFICIENT_MICRO_BATCH = 8  # tiles; below, a GPU is underused, and recomputing activations can pay


class Candidate(BaseModel, frozen=True):
    """A recipe on a card, with predicted memory and time.

    `tiles_per_second` counts all devices; `flops` (by part), `collectives` and `status_exchanges` are those of an
    optimizer step on one device.
    """

    recipe: Recipe
    memory: MemoryEstimate
    tiles_per_second: float
    flops: dict[str, float]
    collectives: list[CollectiveTotal]
    status_exchanges: int

    @property
    def computing_seconds(self) -> float:
        """Predicted seconds of a step without communication."""
        return self.recipe.batch.global_batch_size / self.tiles_per_second


class Change(BaseModel, frozen=True):
    """A change of a recipe, and the predicted differences of the reserved peak and, as a share, of the step time."""

    words: str
    memory_bytes: int
    time_share: float
    fits: bool


def with_planned_section(candidate: Candidate, measured_on: str | None) -> Recipe:
    """Return the candidate's recipe with its predictions, and the card on which they were measured, if any."""
    memory = candidate.memory
    expected = Planned(
        peak_reserved_mib=round(memory.peak_reserved_bytes / MIB),
        headroom_mib=round(memory.headroom_bytes / MIB),
        breakdown_mib={name: round(size / MIB) for name, size in memory.breakdown_bytes.items()},
        torch=version("torch"),
        measured_on=measured_on,
    )
    return candidate.recipe.model_copy(update={"planned": expected})
