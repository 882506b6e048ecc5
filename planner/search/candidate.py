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

    Attributes:
        tiles_per_second: Of all devices together.
        flops: Counted operations of an optimizer step on one device, by part.
        collectives: Collectives of an optimizer step.
        status_exchanges: How often all processes exchange their status in a step.
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
    """A change of a recipe, and its predicted effect.

    Attributes:
        words: The change, for people.
        memory_bytes: Difference of the reserved peaks.
        time_share: Difference of the step times, as a share of the present one.
        fits: The changed recipe fits.
    """

    words: str
    memory_bytes: int
    time_share: float
    fits: bool


class Changes(BaseModel, frozen=True):
    """The changes that make a recipe fit, the fastest first."""

    changes: list[Change]


class ScalingCheck(BaseModel, frozen=True):
    """The peak of a trace at the chosen micro-batch size, relative to that of the scaled trace, minus 1."""

    difference: float


def with_planned_section(candidate: Candidate, measured_on: str | None) -> Recipe:
    """Return the candidate's recipe with its predictions in the `planned` section.

    Args:
        measured_on: The card on which they were measured, if any.
    """
    memory = candidate.memory
    expected = Planned(
        peak_reserved_mib=round(memory.peak_reserved_bytes / MIB),
        headroom_mib=round(memory.headroom_bytes / MIB),
        breakdown_mib={name: round(size / MIB) for name, size in memory.breakdown_bytes.items()},
        torch=version("torch"),
        measured_on=measured_on,
    )
    return candidate.recipe.model_copy(update={"planned": expected})
