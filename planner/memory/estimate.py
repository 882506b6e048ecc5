"""What a recipe takes on a card, item by item."""

from __future__ import annotations

from collections import Counter

from moco_accel.recipe.schema import Recipe
from planner.cards.devices import UTILISATION, Card
from planner.memory.allocator import replay
from planner.memory.candidate import CATEGORIES, Candidate, MemoryEstimate, PapersWay, with_memory, with_micro_batch
from planner.memory.evidence import all_rows, evidence
from planner.memory.scaling import MOST_TRACED, ScalableTrace, scalable, traceable_batch
from planner.trace.events import Event
from planner.trace.paper_step import both_views_step
from planner.trace.trace import trace_step

_traces: dict[tuple[str, int], ScalableTrace] = {}


def trace_for(recipe: Recipe, card: Card) -> ScalableTrace:
    """Trace `recipe`'s step once, for every micro-batch size and, from three micro-batches on, every number of them."""
    traceable = traceable_batch(recipe, min(recipe.batch.accumulation_steps, MOST_TRACED))
    key = (traceable.model_dump_json(exclude={"planned"}), card.compute_capability)
    if key not in _traces:
        _traces[key] = scalable(trace_step(traceable, card.compute_capability), traceable)
    return _traces[key]


def judge(recipe: Recipe, card: Card) -> Candidate:
    """The recipe as it is."""
    traced, batch = trace_for(recipe, card), recipe.batch
    return Candidate(
        recipe=recipe,
        memory=estimate(traced, recipe, card),
        tiles_per_second=predicted_tiles_per_second(traced, recipe, card),
        flops=traced.flops_by_part(batch.micro_batch_size, batch.accumulation_steps),
        sent=traced.sent(batch.micro_batch_size, batch.accumulation_steps),
        meetings=traced.meetings(batch.accumulation_steps) if recipe.heals else 0,
    )


def estimate(traced: ScalableTrace, recipe: Recipe, card: Card) -> MemoryEstimate:
    """The memory of `recipe` on `card`, from a trace of the same recipe at any batch size."""
    events = traced.events(recipe.batch.micro_batch_size, recipe.batch.accumulation_steps)
    peaks = replay(events, recipe.memory.expandable_segments)
    breakdown = _categories_at(events, peaks.at_event, traced)
    off_share = evidence(recipe.encoder.name, card, all_rows()).share
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


def papers_way(recipe: Recipe, card: Card) -> PapersWay:
    """The memory of the paper's own step on the same per-device batch: both views at once, no micro-batches."""
    recipe = with_memory(recipe, activation_checkpointing=False)
    traceable = traceable_batch(recipe, 1)
    traced = scalable(trace_step(traceable, card.compute_capability, step=both_views_step), traceable)
    memory = estimate(traced, with_micro_batch(recipe, recipe.per_device_batch_size), card)
    return PapersWay(peak_reserved_bytes=memory.peak_reserved_bytes, breakdown_bytes=memory.breakdown_bytes)


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
