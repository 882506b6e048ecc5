"""Run moco-plan in this process; recipes and a measurement to plan with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from support.recipes import small_recipe
from typer.testing import CliRunner, Result

from moco_accel.recipe.schema import Recipe
from planner.cli import app
from planner.evidence.measure import Measurement

CONTRAST_AND_KEEP_LAST = [("global_batch", True), ("global_batch", False), ("micro_batch", True)]
SMALL = ["--encoder", "vit_tiny_patch16", "--image-size", "64", "--global-batch", "256"]
MEASUREMENT = Measurement(
    peak_allocated_bytes=900, peak_reserved_bytes=1000, device_used_bytes=1500, total_bytes=4000, retries=0,
    skipped_steps=0, seconds_per_step=0.5, tiles_per_second=16.0, gpu="a card", compute_capability=86, driver="1",
    torch="2", cuda="13", cudnn="9", transformers="5", accelerate="1", expandable_segments=True,
)  # fmt: skip


def moco_plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def plan_as_json(*arguments: str) -> tuple[dict[str, Any], str]:
    """Run a plan that must fit; return its JSON from stdout, and stderr."""
    result = moco_plan(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def assert_refused(arguments: Sequence[str], message: str) -> None:
    """Check that the options end in exit code 2 and in one line with `message`."""
    result = moco_plan(*arguments)
    assert result.exit_code == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def two_device_recipe(
    encoder: str, batch: int, micro_batch_size: int, contrast_over: str = "global_batch", **sections: dict[str, object]
) -> Recipe:
    """A recipe for two devices with 64-pixel tiles and small heads."""
    steps = batch // micro_batch_size // 2
    sizes = {"global_batch_size": batch, "micro_batch_size": micro_batch_size, "accumulation_steps": steps}
    sizes["contrast_over"] = contrast_over
    frozen = {"name": encoder, "image_size": 64, "freeze_patch_projection": encoder.startswith("vit")}
    heads = {"projector_hidden_dim": 256, "output_dim": 64}
    return small_recipe(encoder=frozen, moco=heads, batch=sizes, hardware={"num_devices": 2}, **sections)


def recipe_on(devices: int, **sections: dict[str, Any]) -> Recipe:
    """`small_recipe` on several devices, each with 2 micro-batches of 4 unless `batch` differs."""
    batch = {"micro_batch_size": 4, "accumulation_steps": 2} | sections.pop("batch", {})
    batch["global_batch_size"] = batch["micro_batch_size"] * batch["accumulation_steps"] * devices
    return small_recipe(batch=batch, hardware={"num_devices": devices}, **sections)
