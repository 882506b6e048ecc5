"""Card → the best recipe that fits."""

from __future__ import annotations

from dataclasses import dataclass

from moco_accel.recipe import Batch, Memory, Planned, Recipe
from planner.allocator import MIB, replay
from planner.devices import Card
from planner.estimate import MemoryEstimate, estimate, predicted_tiles_per_second, trace_for
from planner.scaling import ScalableTrace
from planner.trace import trace_step

TABLE_ENCODERS = (
    *(f"vit_{size}_patch16" for size in ("tiny", "small", "base", "large")),
    "resnet18",
    "resnet50",
)
_FEW_TILES = 8  # below this many at once a GPU idles, so that recomputing activations can pay


@dataclass(frozen=True)
class Candidate:
    """An encoder's best recipe on a card: the largest micro-batch that fits, or size 1 and by how much it does not."""

    recipe: Recipe
    memory: MemoryEstimate
    tiles_per_second: float
    traced: ScalableTrace


def best(recipe: Recipe, card: Card) -> Candidate:
    """Largest micro-batch that fits; activations recomputed only where few tiles fit without."""
    plain = _largest(with_memory(recipe, False), card)
    if plain.memory.fits and plain.recipe.batch.micro_batch_size >= min(_FEW_TILES, recipe.per_device_batch_size):
        return plain
    recomputing = _largest(with_memory(recipe, True), card)
    if not plain.memory.fits:
        return recomputing
    grows = recomputing.recipe.batch.micro_batch_size > plain.recipe.batch.micro_batch_size
    return recomputing if grows and recomputing.memory.fits else plain


def fit(recipe: Recipe, card: Card) -> Candidate:
    """The recipe as it is."""
    return _candidate(trace_for(recipe, card), recipe, card)


def with_memory(recipe: Recipe, activation_checkpointing: bool) -> Recipe:
    memory = Memory(mixed_precision=recipe.memory.mixed_precision, activation_checkpointing=activation_checkpointing)
    return recipe.model_copy(update={"memory": memory})


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


def planned(candidate: Candidate) -> Recipe:
    """The candidate's recipe, with what the planner expects of it."""
    import torch

    memory = candidate.memory
    expected = Planned(
        peak_reserved_mib=round(memory.peak_reserved_bytes / MIB),
        headroom_mib=round(memory.headroom_bytes / MIB),
        breakdown_mib={name: round(size / MIB) for name, size in memory.breakdown_bytes.items()},
        torch=str(torch.__version__),
    )
    return candidate.recipe.model_copy(update={"planned": expected})


def retraced_difference(candidate: Candidate, card: Card) -> float:
    """Peak of a trace at the candidate's own micro-batch size, of at most 3 micro-batches, relative to the scaled one.

    What was scaled is thereby checked at the size it was scaled to.
    """
    recipe = candidate.recipe
    steps = min(recipe.batch.accumulation_steps, 3)
    batch = Batch(
        global_batch_size=recipe.batch.micro_batch_size * steps * recipe.hardware.num_devices,
        micro_batch_size=recipe.batch.micro_batch_size,
        accumulation_steps=steps,
        contrast_over=recipe.batch.contrast_over,
    )
    trace = trace_step(recipe.model_copy(update={"batch": batch}), card.compute_capability)
    traced = replay(trace.events).peak_reserved_bytes
    scaled = replay(candidate.traced.events(batch.micro_batch_size, steps, steps=1)).peak_reserved_bytes
    return traced / scaled - 1


def _largest(recipe: Recipe, card: Card) -> Candidate:
    per_device = recipe.per_device_batch_size
    sizes = [size for size in range(1, per_device) if per_device % size == 0] or [per_device]
    traced = trace_for(with_micro_batch(recipe, sizes[0]), card)
    found = _candidate(traced, with_micro_batch(recipe, sizes[0]), card)
    low, high = 1, len(sizes)  # sizes[:low] fit, sizes[high:] do not
    while found.memory.fits and low < high:
        middle = (low + high) // 2
        trial = _candidate(traced, with_micro_batch(recipe, sizes[middle]), card)
        if trial.memory.fits:
            found, low = trial, middle + 1
        else:
            high = middle
    if found.memory.fits and found.recipe.batch.micro_batch_size == sizes[-1] < per_device:
        whole = fit(with_micro_batch(recipe, per_device), card)  # one micro-batch needs no recomputation
        found = whole if whole.memory.fits else found
    return found


def _candidate(traced: ScalableTrace, recipe: Recipe, card: Card) -> Candidate:
    return Candidate(recipe, estimate(traced, recipe, card), predicted_tiles_per_second(traced, recipe, card), traced)
