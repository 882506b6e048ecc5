"""What a recipe takes on a card, item by item."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from moco_accel.recipe import Recipe
from planner.allocator import Event, replay
from planner.devices import UTILISATION, Card
from planner.scaling import ScalableTrace, scalable, traceable_batch
from planner.trace import trace_step

CATEGORIES = (
    "weights", "momentum_weights", "gradients", "optimizer_state", "activations", "heads", "inputs", "temporaries",
    "workspaces", "fragmentation", "context", "headroom",
)  # fmt: skip


@dataclass(frozen=True)
class MemoryEstimate:
    """One device's memory, in bytes.

    `peak_reserved_bytes` is the allocator's, `device_used_bytes` adds what lies outside it. `headroom_bytes` is what
    stays free; it fits when that is the card's own headroom or more, of which `missing_bytes` are lacking. The
    breakdown is that of the instant at which most is allocated, in `peak_operation`; with fragmentation it adds up to
    what is reserved.
    """

    peak_reserved_bytes: int
    peak_allocated_bytes: int
    device_used_bytes: int
    breakdown_bytes: dict[str, int]
    fits: bool
    headroom_bytes: int
    missing_bytes: int
    peak_operation: str


def trace_for(recipe: Recipe, card: Card) -> ScalableTrace:
    """Trace `recipe`'s step once, for every micro-batch size (with one micro-batch, or for more than one)."""
    traceable = traceable_batch(recipe, min(recipe.batch.accumulation_steps, 2))
    return scalable(trace_step(traceable, card.compute_capability), traceable)


def estimate(traced: ScalableTrace, recipe: Recipe, card: Card) -> MemoryEstimate:
    """The memory of `recipe` on `card`, from a trace of the same recipe at any batch size.

    Without expandable segments: the launch does not ask for them, and they only take less.
    """
    events = traced.events(recipe.batch.micro_batch_size, recipe.batch.accumulation_steps)
    peaks = replay(events)
    breakdown = _categories_at(events, peaks.at_event, traced)
    outside = card.outside_bytes(recipe.hardware.num_devices)
    used = peaks.peak_reserved_bytes + outside
    free = card.budget_bytes(recipe.hardware.num_devices) - peaks.peak_reserved_bytes + card.headroom_bytes
    breakdown["fragmentation"] = peaks.peak_reserved_bytes - sum(breakdown.values())
    breakdown["context"], breakdown["headroom"] = outside, free
    tensor = traced.trace.tensors[traced.original(events[peaks.at_event][0])]
    return MemoryEstimate(
        peak_reserved_bytes=peaks.peak_reserved_bytes,
        peak_allocated_bytes=peaks.peak_allocated_bytes,
        device_used_bytes=used,
        breakdown_bytes={name: breakdown[name] for name in CATEGORIES},
        fits=free >= card.headroom_bytes,
        headroom_bytes=free,
        missing_bytes=max(card.headroom_bytes - free, 0),
        peak_operation=f"{tensor.operation.removeprefix('aten.').partition('.')[0]} ({tensor.phase})",
    )


def predicted_tiles_per_second(traced: ScalableTrace, recipe: Recipe, card: Card) -> float:
    """All devices together, from counted operations at a stated share of the card's peak. Not measured."""
    flops = traced.flops(recipe.batch.micro_batch_size, recipe.batch.accumulation_steps)
    seconds = flops / (card.tensor_tflops * 1e12 * UTILISATION)
    return recipe.batch.global_batch_size / seconds


def _categories_at(events: list[Event], instant: int, traced: ScalableTrace) -> Counter[str]:
    live: dict[int, int] = {}
    for number, size in events[: instant + 1]:
        if size:
            live[number] = size
        else:
            del live[number]
    total: Counter[str] = Counter()
    for number, size in live.items():
        category = traced.trace.tensors[traced.original(number)].category
        total["temporaries" if category == "forward" else category] += size
    return total
