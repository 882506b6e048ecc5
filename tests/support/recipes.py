"""A small recipe for tests."""

from __future__ import annotations

from typing import Any

from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe


def small_recipe(**sections: dict[str, Any]) -> Recipe:
    """Return a recipe that trains in a second: global batch 8 in micro-batches of 4, tiles of 16 pixels."""
    fields: dict[str, dict[str, Any]] = {
        "encoder": {"name": "vit_tiny_patch8", "image_size": 16},
        "moco": {"projector_hidden_dim": 32, "output_dim": 16},
        "batch": {"global_batch_size": 8, "micro_batch_size": 4, "accumulation_steps": 2},
        "optimizer": {"name": "adamw"},
        "schedule": {"epochs": 2, "warmup_epochs": 1},
        "memory": {"mixed_precision": "no"},
        "data": {"num_workers": 0},
    }
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section
    fields["optimizer"].setdefault("lr", scaled_lr(1.5e-4, fields["batch"]["global_batch_size"]))
    return recipe_from_dict(fields)
