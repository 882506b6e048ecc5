"""Variants of a recipe that keep its science: other micro-batches, other memory settings."""

from __future__ import annotations

from moco_accel.recipe.schema import Batch, Recipe


def with_micro_batch(recipe: Recipe, micro_batch_size: int) -> Recipe:
    """Return `recipe` with the same global batch in micro-batches that divide the per-device batch."""
    steps, rest = divmod(recipe.per_device_batch_size, micro_batch_size)
    assert rest == 0, f"micro-batches of {micro_batch_size} do not divide {recipe.per_device_batch_size}"
    return with_batch(recipe, micro_batch_size, steps)


def with_batch(recipe: Recipe, micro_batch_size: int, accumulation_steps: int) -> Recipe:
    """Return `recipe` with these sizes and the global batch that follows from them."""
    batch = Batch(
        global_batch_size=micro_batch_size * accumulation_steps * recipe.hardware.num_devices,
        micro_batch_size=micro_batch_size,
        accumulation_steps=accumulation_steps,
        contrast_over=recipe.batch.contrast_over,
    )
    return recipe.model_copy(update={"batch": batch})


def with_memory(recipe: Recipe, **settings: object) -> Recipe:
    """Return `recipe` with other settings in its `memory` section."""
    return recipe.model_copy(update={"memory": recipe.memory.model_copy(update=settings)})
