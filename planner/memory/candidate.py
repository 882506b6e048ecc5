"""What the planner finds out about a recipe on a card. Imports no torch, so that a remembered answer comes at once."""

from __future__ import annotations

from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

from moco_accel.recipe.hardware_sections import Planned
from moco_accel.recipe.schema import Batch, Recipe
from planner.cards.devices import MIB

CATEGORIES = (
    "weights", "momentum_weights", "gradients", "optimizer_state", "activations", "heads", "inputs", "temporaries",
    "workspaces", "fragmentation", "context", "headroom",
)  # fmt: skip

FEW_TILES = 8  # below this many at once a GPU idles, so that recomputing activations can pay


class Finding(BaseModel):
    model_config = ConfigDict(frozen=True)


class MemoryEstimate(Finding):
    """One device's memory, in bytes.

    `peak_reserved_bytes` is the allocator's, `device_used_bytes` adds what lies outside it. `headroom_bytes` is what
    stays free. The peak may be off by `off_share` (see `evidence`); it fits when that much stays free, and the card's
    own headroom, else `missing_bytes` are lacking. The breakdown is that of the instant at which most is allocated, in
    `peak_operation`; with fragmentation it adds up to what is reserved.
    """

    peak_reserved_bytes: int
    off_share: float
    peak_allocated_bytes: int
    device_used_bytes: int
    breakdown_bytes: dict[str, int]
    fits: bool
    headroom_bytes: int
    missing_bytes: int
    peak_operation: str


class SentTotal(Finding):
    """What one optimizer step sends of a kind: `times` often, `size_bytes` of what is reduced or gathered in all.

    `operation` is "all-reduce", "all-gather" or "reduce-scatter"; `what` is "keys", "batch_norm", "gradients" or
    "parameters". `processes` take part each time, the first and each `apart`-th after it.
    """

    operation: str
    what: str
    processes: int
    apart: int
    times: int
    size_bytes: int


class Candidate(Finding):
    """A recipe on a card: its memory, and the tiles that all devices together train in a second (predicted).

    One process's optimizer step: its counted operations by part of the step, what it sends, and how often all
    processes meet before they send.
    """

    recipe: Recipe
    memory: MemoryEstimate
    tiles_per_second: float
    flops: dict[str, float]
    sent: list[SentTotal]
    meetings: int

    @property
    def seconds_per_step(self) -> float:
        """Predicted, of computing alone."""
        return self.recipe.batch.global_batch_size / self.tiles_per_second


class PapersWay(Finding):
    """What the paper's own step would take: both views at once, no micro-batches. Bytes on each card."""

    peak_reserved_bytes: int
    breakdown_bytes: dict[str, int]


class Change(Finding):
    """Of a recipe: what to change, what that adds to the peak (bytes) and to a step's time (share), predicted."""

    words: str
    memory_bytes: int
    time_share: float
    fits: bool


class Changes(Finding):
    changes: list[Change]


class Retraced(Finding):
    """A second trace, at the micro-batch size that was found: its peak relative to the scaled one's, less 1."""

    difference: float


def with_micro_batch(recipe: Recipe, micro_batch_size: int) -> Recipe:
    """The same global batch in micro-batches of `micro_batch_size`, which must divide the per-device batch."""
    per_device, rest = divmod(recipe.per_device_batch_size, micro_batch_size)
    assert rest == 0, f"micro-batches of {micro_batch_size} do not make {recipe.per_device_batch_size}"
    batch = Batch(
        global_batch_size=recipe.batch.global_batch_size,
        micro_batch_size=micro_batch_size,
        accumulation_steps=per_device,
        contrast_over=recipe.batch.contrast_over,
    )
    return recipe.model_copy(update={"batch": batch})


def with_memory(recipe: Recipe, **changes: bool) -> Recipe:
    """The same science, stored otherwise."""
    return recipe.model_copy(update={"memory": recipe.memory.model_copy(update=changes)})


def planned(candidate: Candidate, measured_on: str | None) -> Recipe:
    """The candidate's recipe, with what the planner expects of it, and the card on which that was measured."""
    memory = candidate.memory
    expected = Planned(
        peak_reserved_mib=round(memory.peak_reserved_bytes / MIB),
        headroom_mib=round(memory.headroom_bytes / MIB),
        breakdown_mib={name: round(size / MIB) for name, size in memory.breakdown_bytes.items()},
        torch=version("torch"),
        measured_on=measured_on,
    )
    return candidate.recipe.model_copy(update={"planned": expected})
