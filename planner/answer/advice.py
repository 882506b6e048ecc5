"""What would make a recipe fit, and at what price; and what a plan's science would be better off with."""

from __future__ import annotations

from collections.abc import Iterator

from moco_accel.recipe.schema import Recipe
from planner.answer.search import best, can_be_divided, micro_batch_sizes
from planner.cards.devices import Card
from planner.memory.candidate import Candidate, Change, Changes, with_memory, with_micro_batch
from planner.memory.estimate import judge


def changes(recipe: Recipe, card: Card) -> Changes:
    """Every single change tried that makes `recipe` fit, the fastest first; else all the planner's own at once."""
    now = judge(recipe, card)
    tried = [_change(words, now, judge(changed, card)) for words, changed in _single(recipe, card)]
    fitting = sorted((change for change in tried if change.fits), key=lambda change: change.time_share)
    if not fitting:
        together = best(recipe, card)
        fitting = [_change(_together(together.recipe), now, together)] if together.memory.fits else []
    return Changes(changes=fitting)


def _single(recipe: Recipe, card: Card) -> Iterator[tuple[str, Recipe]]:
    memory, batch = recipe.memory, recipe.batch
    if memory.keep_last_micro_batch and batch.accumulation_steps > 1:
        yield "memory.keep_last_micro_batch=false", with_memory(recipe, keep_last_micro_batch=False)
    if not memory.expandable_segments:
        yield "memory.expandable_segments=true", with_memory(recipe, expandable_segments=True)
    if not memory.activation_checkpointing:
        yield "activation checkpointing", with_memory(recipe, activation_checkpointing=True)
    if not memory.fully_shard and can_be_divided(recipe):
        yield "memory.fully_shard=true", with_memory(recipe, fully_shard=True, keep_last_micro_batch=False)
    for size in reversed(micro_batch_sizes(recipe)):
        if size < batch.micro_batch_size and judge(smaller := with_micro_batch(recipe, size), card).memory.fits:
            words = f"micro-batch {size:,} × {smaller.batch.accumulation_steps:,}"
            if batch.contrast_over == "micro_batch":
                words += f" (with only {smaller.negatives_per_query:,} negatives per query)"
            yield words, smaller
            break
    if recipe.optimizer.name == "adamw":
        yield (
            "8-bit AdamW",
            recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"name": "adamw_8bit"})}),
        )
    if memory.mixed_precision == "no":
        precision = {"mixed_precision": card.precision}
        yield card.precision, recipe.model_copy(update={"memory": memory.model_copy(update=precision)})


def _together(recipe: Recipe) -> str:
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
