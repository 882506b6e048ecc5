"""moco-plan in this process, and cards and recipes to ask it about."""

from __future__ import annotations

from support.recipes import small_recipe
from typer.testing import CliRunner, Result

from moco_accel.recipe.schema import Recipe
from planner.cli import app

WAYS = [("global_batch", True), ("global_batch", False), ("micro_batch", True)]


SMALL = ["--encoder", "vit_tiny_patch16", "--image-size", "64", "--global-batch", "256"]


def moco_plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def fitted(encoder: str, batch: int, micro_batch_size: int, **sections: dict[str, object]) -> Recipe:
    steps = batch // micro_batch_size // 2
    sizes = {"global_batch_size": batch, "micro_batch_size": micro_batch_size, "accumulation_steps": steps}
    frozen = {"name": encoder, "image_size": 64, "freeze_patch_projection": encoder.startswith("vit")}
    heads = {"projector_hidden_dim": 256, "output_dim": 64}
    return small_recipe(encoder=frozen, moco=heads, batch=sizes, hardware={"num_devices": 2}, **sections)
