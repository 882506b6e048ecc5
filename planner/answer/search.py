"""Card → the best recipe that fits."""

from __future__ import annotations

from moco_accel.common.errors import UserError
from moco_accel.recipe.rules import check_rules, least_micro_batch
from moco_accel.recipe.schema import Batch, Recipe
from planner.cards.devices import Card
from planner.memory.allocator import replay
from planner.memory.candidate import FEW_TILES, Candidate, Retraced, with_memory, with_micro_batch
from planner.memory.estimate import judge, trace_for
from planner.trace.trace import trace_step

_FEW_MICRO_BATCHES = 6  # among more, the one that need not be recomputed saves less than 3 % of a step


def best(recipe: Recipe, card: Card) -> Candidate:
    """An encoder's best recipe on a card: the largest micro-batch that fits, or size 1 and by how much it does not.

    Activations are recomputed only where few tiles fit without; networks are divided over a node's devices, which takes
    much sending, only where nothing fits without.
    """
    found = _best(with_memory(recipe, fully_shard=False), card)
    if found.memory.fits or not can_be_divided(recipe):
        return found
    divided = _best(with_memory(recipe, fully_shard=True), card)
    return divided if divided.memory.fits else found


def can_be_divided(recipe: Recipe) -> bool:
    """Whether `memory.fully_shard` goes together with the rest."""
    try:
        check_rules(with_memory(recipe, fully_shard=True, keep_last_micro_batch=False))
    except UserError:
        return False
    return True


def _best(recipe: Recipe, card: Card) -> Candidate:
    plain = _largest(with_memory(recipe, activation_checkpointing=False), card)
    if plain.memory.fits and plain.recipe.batch.micro_batch_size >= min(FEW_TILES, recipe.per_device_batch_size):
        return plain
    recomputing = _largest(with_memory(recipe, activation_checkpointing=True), card)
    if not plain.memory.fits:
        return recomputing
    grows = recomputing.recipe.batch.micro_batch_size > plain.recipe.batch.micro_batch_size
    return recomputing if grows and recomputing.memory.fits else plain


def micro_batch_sizes(recipe: Recipe) -> list[int]:
    """Those that make up the recipe's per-device batch, ascending."""
    per_device = recipe.per_device_batch_size
    least = least_micro_batch(recipe.encoder.name, recipe.encoder.image_size)
    return [size for size in range(least, per_device + 1) if per_device % size == 0]


def retraced(recipe: Recipe, card: Card) -> Retraced:
    """Peak of a trace at the recipe's own micro-batch size, of at most 3 micro-batches, beside the scaled one's.

    What was scaled is thereby checked at the size it was scaled to.
    """
    steps = min(recipe.batch.accumulation_steps, 3)
    batch = Batch(
        global_batch_size=recipe.batch.micro_batch_size * steps * recipe.hardware.num_devices,
        micro_batch_size=recipe.batch.micro_batch_size,
        accumulation_steps=steps,
        contrast_over=recipe.batch.contrast_over,
    )
    direct = trace_step(recipe.model_copy(update={"batch": batch}), card.compute_capability).events
    scaled = trace_for(recipe, card).events(batch.micro_batch_size, steps, steps=1)
    peaks = [replay(events, recipe.memory.expandable_segments).peak_reserved_bytes for events in (direct, scaled)]
    return Retraced(difference=peaks[0] / peaks[1] - 1)


def _largest(recipe: Recipe, card: Card) -> Candidate:
    recipe = with_memory(recipe, keep_last_micro_batch=False)
    sizes = micro_batch_sizes(recipe)
    smaller = sizes[:-1] or sizes
    found = judge(with_micro_batch(recipe, smaller[0]), card)
    low, high = 1, len(smaller)  # smaller[:low] fit, smaller[high:] do not
    while found.memory.fits and low < high:
        middle = (low + high) // 2
        trial = judge(with_micro_batch(recipe, smaller[middle]), card)
        if trial.memory.fits:
            found, low = trial, middle + 1
        else:
            high = middle
    return _with_less_recomputation(found, card, smaller[-1])


def _with_less_recomputation(found: Candidate, card: Card, largest: int) -> Candidate:
    """The same with one micro-batch, or with the last one kept, if that fits: it takes less time."""
    recipe, batch = found.recipe, found.recipe.batch
    trials = []
    if batch.micro_batch_size == largest:
        trials.append(with_micro_batch(recipe, recipe.per_device_batch_size))
    if 1 < batch.accumulation_steps <= _FEW_MICRO_BATCHES and not recipe.memory.fully_shard:
        trials.append(with_memory(recipe, keep_last_micro_batch=True))
    for trial in trials if found.memory.fits else []:
        candidate = judge(trial, card)
        if candidate.memory.fits:
            return candidate
    return found
