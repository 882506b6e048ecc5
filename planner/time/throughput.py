"""Predict a step's throughput from its counted operations."""

from __future__ import annotations

from collections.abc import Mapping

from moco_accel.recipe.schema import Recipe
from planner.cards.card import Card

UTILISATION = 0.35
"""Assumed share of a card's peak throughput that training reaches: usual for ViTs in 16 bits, a guess for any card."""


def predicted_tiles_per_second(flops: float, recipe: Recipe, card: Card) -> float:
    """Predict the tiles per second of all devices together, without communication. Not measured.

    Args:
        flops: Floating-point operations of one optimizer step on one device.
    """
    seconds = flops / (card.tensor_tflops * 1e12 * UTILISATION)
    return recipe.batch.global_batch_size / seconds


def operations_share(flops: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each part in a step's counted operations."""
    total = sum(flops.values())
    return {part: count / total for part, count in flops.items()}
