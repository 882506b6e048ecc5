"""Predict the memory of a recipe on a card, by category."""

from __future__ import annotations

from collections import Counter

from moco_accel.recipe.schema import Recipe
from planner.cards.card import Card
from planner.evidence.records import load_measurements, prediction_error
from planner.memory.allocator import live_tensors, replay
from planner.memory.memory_estimate import CATEGORIES, MemoryEstimate
from planner.trace.events import Event
from planner.trace.scaling import ScalableTrace, make_scalable, with_memory, with_micro_batch, with_traceable_batch
from planner.trace.trace import both_views_step, trace_step


def estimate_memory(traced: ScalableTrace, recipe: Recipe, card: Card) -> MemoryEstimate:
    """Predict the memory of `recipe` on `card` from a trace of the recipe at any batch size."""
    events = traced.events(recipe.batch.micro_batch_size, recipe.batch.accumulation_steps)
    peaks = replay(events, recipe.memory.expandable_segments)
    breakdown = _categories_at(events, peaks.at_event, traced)
    off_share = prediction_error(recipe.encoder.name, card, load_measurements()).share
    devices = recipe.hardware.num_devices
    outside = card.outside_bytes(devices)
    free, needed = card.free_and_needed_bytes(peaks.peak_reserved_bytes, off_share, devices)
    breakdown["fragmentation"] = peaks.peak_reserved_bytes - sum(breakdown.values())
    breakdown["context"], breakdown["headroom"] = outside, free
    tensor = traced.trace.tensors[traced.original(events[peaks.at_event][0])]
    return MemoryEstimate(
        peak_reserved_bytes=peaks.peak_reserved_bytes,
        off_share=off_share,
        peak_allocated_bytes=peaks.peak_allocated_bytes,
        device_used_bytes=peaks.peak_reserved_bytes + outside,
        breakdown_bytes={name: breakdown[name] for name in CATEGORIES},
        fits=free >= needed,
        headroom_bytes=free,
        missing_bytes=max(needed - free, 0),
        peak_operation=f"{tensor.operation.removeprefix('aten.').partition('.')[0]} ({tensor.phase})",
    )


def estimate_paper_step(recipe: Recipe, card: Card) -> MemoryEstimate:
    """Predict the memory of the paper's step on the same per-device batch: both views at once, no micro-batches."""
    recipe = with_memory(recipe, activation_checkpointing=False)
    traceable = with_traceable_batch(recipe, 1)
    traced = make_scalable(trace_step(traceable, card.compute_capability, step=both_views_step), traceable)
    return estimate_memory(traced, with_micro_batch(recipe, recipe.per_device_batch_size), card)


def _categories_at(events: list[Event], index: int, traced: ScalableTrace) -> Counter[str]:
    total: Counter[str] = Counter()
    for number, size in live_tensors(events, index).items():
        category = traced.trace.tensors[traced.original(number)].category
        total["temporaries" if category == "forward" else category] += size
    return total
