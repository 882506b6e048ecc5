"""Find changes that make a recipe fit, with their cost in time."""

from __future__ import annotations

from collections.abc import Iterator

from moco_accel.recipe.schema import Recipe
from planner.cards.card import Card
from planner.search.best_recipe import can_fully_shard, evaluate, find_best, micro_batch_sizes
from planner.search.candidate import Candidate, Change, Changes
from planner.trace.recipe_variants import with_memory, with_micro_batch


def find_changes(recipe: Recipe, card: Card) -> Changes:
    """Return every single change that makes `recipe` fit, the fastest first; if none does, the best combination."""
    now = evaluate(recipe, card)
    tried = [_change(words, now, evaluate(changed, card)) for words, changed in _single_changes(recipe, card)]
    fitting = sorted((change for change in tried if change.fits), key=lambda change: change.time_share)
    if not fitting:
        best = find_best(recipe, card)
        fitting = [_change(_describe_settings(best.recipe), now, best)] if best.memory.fits else []
    return Changes(changes=fitting)


def _single_changes(recipe: Recipe, card: Card) -> Iterator[tuple[str, Recipe]]:
    memory, batch = recipe.memory, recipe.batch
    if memory.keep_last_micro_batch and batch.accumulation_steps > 1:
        yield "memory.keep_last_micro_batch=false", with_memory(recipe, keep_last_micro_batch=False)
    if not memory.expandable_segments:
        yield "memory.expandable_segments=true", with_memory(recipe, expandable_segments=True)
    if not memory.activation_checkpointing:
        yield "activation checkpointing", with_memory(recipe, activation_checkpointing=True)
    if not memory.fully_shard and can_fully_shard(recipe):
        yield "memory.fully_shard=true", with_memory(recipe, fully_shard=True, keep_last_micro_batch=False)
    for size in reversed(micro_batch_sizes(recipe)):
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
