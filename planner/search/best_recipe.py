"""Search for an encoder's best recipe that fits a card, and for changes that make a recipe fit."""

from __future__ import annotations

from collections.abc import Iterator

from moco_accel.common.errors import UserError
from moco_accel.recipe.rules import check_rules, min_micro_batch_size
from moco_accel.recipe.schema import Recipe
from planner.cards.card import Card
from planner.memory.allocator import replay
from planner.memory.estimate import estimate_memory
from planner.search.candidate import MIN_EFFICIENT_MICRO_BATCH, Candidate, Change
from planner.time.step_time import predicted_tiles_per_second
from planner.trace.scaling import MAX_TRACED_MICRO_BATCHES, trace_for, with_batch, with_memory, with_micro_batch
from planner.trace.trace import trace_step

_FEW_MICRO_BATCHES = 6  # with more, keeping the last one saves less than 3 % of a step


def evaluate(recipe: Recipe, card: Card) -> Candidate:
    """Predict memory and time of `recipe` as it is."""
    traced, batch = trace_for(recipe, card), recipe.batch
    flops = traced.flops(batch.micro_batch_size, batch.accumulation_steps)
    return Candidate(
        recipe=recipe,
        memory=estimate_memory(traced, recipe, card),
        tiles_per_second=predicted_tiles_per_second(sum(flops.values()), recipe, card),
        flops=flops,
        collectives=traced.collectives(batch.micro_batch_size, batch.accumulation_steps),
        status_exchanges=traced.status_exchanges(batch.accumulation_steps) if recipe.recovers_from_oom else 0,
    )


def find_best(recipe: Recipe, card: Card) -> Candidate:
    """Return the best variant of `recipe`: the largest micro-batch that fits, or the smallest if none fits.

    Activations are recomputed only where few tiles fit otherwise. Networks are sharded over a node's GPUs, which costs
    communication, only where nothing fits otherwise.
    """
    found = _find_best(with_memory(recipe, fully_shard=False), card)
    if found.memory.fits or not _can_fully_shard(recipe):
        return found
    sharded = _find_best(with_memory(recipe, fully_shard=True), card)
    return sharded if sharded.memory.fits else found


def _can_fully_shard(recipe: Recipe) -> bool:
    """Return whether the recipe's rules permit `memory.fully_shard`."""
    try:
        check_rules(with_memory(recipe, fully_shard=True, keep_last_micro_batch=False))
    except UserError:
        return False
    return True


def _find_best(recipe: Recipe, card: Card) -> Candidate:
    keeping = _largest_micro_batch(with_memory(recipe, activation_checkpointing=False), card)
    enough = min(MIN_EFFICIENT_MICRO_BATCH, recipe.per_device_batch_size)
    if keeping.memory.fits and keeping.recipe.batch.micro_batch_size >= enough:
        return keeping
    recomputing = _largest_micro_batch(with_memory(recipe, activation_checkpointing=True), card)
    if not keeping.memory.fits:
        return recomputing
    larger = recomputing.recipe.batch.micro_batch_size > keeping.recipe.batch.micro_batch_size
    return recomputing if larger and recomputing.memory.fits else keeping


def _micro_batch_sizes(recipe: Recipe) -> list[int]:
    """Return the permitted micro-batch sizes that divide the per-device batch, in ascending order."""
    per_device = recipe.per_device_batch_size
    least = min_micro_batch_size(recipe.encoder.name, recipe.encoder.image_size)
    return [size for size in range(least, per_device + 1) if per_device % size == 0]


def check_scaling(recipe: Recipe, card: Card) -> float:
    """Return the peak of a trace at the recipe's micro-batch size, relative to that of the scaled trace, minus 1."""
    steps = min(recipe.batch.accumulation_steps, MAX_TRACED_MICRO_BATCHES)
    shorter = with_batch(recipe, recipe.batch.micro_batch_size, steps)
    direct = trace_step(shorter, card.compute_capability).events
    scaled = trace_for(recipe, card).events(recipe.batch.micro_batch_size, steps, steps=1)
    peaks = [replay(events, recipe.memory.expandable_segments).peak_reserved_bytes for events in (direct, scaled)]
    return peaks[0] / peaks[1] - 1


def _largest_micro_batch(recipe: Recipe, card: Card) -> Candidate:
    recipe = with_memory(recipe, keep_last_micro_batch=False)
    sizes = _micro_batch_sizes(recipe)
    smaller = sizes[:-1] or sizes
    found = evaluate(with_micro_batch(recipe, smaller[0]), card)
    low, high = 1, len(smaller)  # smaller[:low] fit, smaller[high:] do not
    while found.memory.fits and low < high:
        middle = (low + high) // 2
        trial = evaluate(with_micro_batch(recipe, smaller[middle]), card)
        if trial.memory.fits:
            found, low = trial, middle + 1
        else:
            high = middle
    return _with_less_recomputation(found, card, smaller[-1])


def _with_less_recomputation(found: Candidate, card: Card, largest: int) -> Candidate:
    """Return a faster variant, with one micro-batch or with the last one kept, if it fits."""
    recipe, batch = found.recipe, found.recipe.batch
    trials = []
    if batch.micro_batch_size == largest:
        trials.append(with_micro_batch(recipe, recipe.per_device_batch_size))
    if 1 < batch.accumulation_steps <= _FEW_MICRO_BATCHES and not recipe.memory.fully_shard:
        trials.append(with_memory(recipe, keep_last_micro_batch=True))
    for trial in trials if found.memory.fits else []:
        candidate = evaluate(trial, card)
        if candidate.memory.fits:
            return candidate
    return found


def find_changes(recipe: Recipe, card: Card) -> list[Change]:
    """Return every single change that makes `recipe` fit, the fastest first; if none does, the best combination."""
    now = evaluate(recipe, card)
    tried = [_change(words, now, evaluate(changed, card)) for words, changed in _single_changes(recipe, card)]
    fitting = sorted((change for change in tried if change.fits), key=lambda change: change.time_share)
    if fitting:
        return fitting
    best = find_best(recipe, card)
    return [_change(_describe_settings(best.recipe), now, best)] if best.memory.fits else []


def _single_changes(recipe: Recipe, card: Card) -> Iterator[tuple[str, Recipe]]:
    memory, batch = recipe.memory, recipe.batch
    if memory.keep_last_micro_batch and batch.accumulation_steps > 1:
        yield "memory.keep_last_micro_batch=false", with_memory(recipe, keep_last_micro_batch=False)
    if not memory.expandable_segments:
        yield "memory.expandable_segments=true", with_memory(recipe, expandable_segments=True)
    if not memory.activation_checkpointing:
        yield "activation checkpointing", with_memory(recipe, activation_checkpointing=True)
    if not memory.fully_shard and _can_fully_shard(recipe):
        yield "memory.fully_shard=true", with_memory(recipe, fully_shard=True, keep_last_micro_batch=False)
    for size in reversed(_micro_batch_sizes(recipe)):
        if size < batch.micro_batch_size and evaluate(smaller := with_micro_batch(recipe, size), card).memory.fits:
            words = f"micro-batch {size:,} × {smaller.batch.accumulation_steps:,}"
            if batch.contrast_over == "micro_batch":
                words += f" (with only {smaller.negatives_per_query:,} negatives per query)"
            yield words, smaller
            break
    if recipe.optimizer.name == "adamw":
        optimizer = recipe.optimizer.model_copy(update={"name": "adamw_8bit"})
        yield "8-bit AdamW", recipe.model_copy(update={"optimizer": optimizer})
    if memory.mixed_precision == "no":
        yield card.precision, with_memory(recipe, mixed_precision=card.precision)


def _describe_settings(recipe: Recipe) -> str:
    words = f"micro-batch {recipe.batch.micro_batch_size:,} × {recipe.batch.accumulation_steps:,}"
    words += " and activation checkpointing" if recipe.memory.activation_checkpointing else ""
    return words + (" and memory.fully_shard=true" if recipe.memory.fully_shard else "")


def _change(words: str, before: Candidate, after: Candidate) -> Change:
    return Change(
        words=words,
        memory_bytes=after.memory.peak_reserved_bytes - before.memory.peak_reserved_bytes,
        time_share=before.tiles_per_second / after.tiles_per_second - 1,
        fits=after.memory.fits,
    )
