"""Answer `moco-plan` on a machine without a GPU when none is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rich.markup import escape

from moco_accel.common.console import console
from moco_accel.recipe.load import load_recipe
from moco_accel.recipe.schema import Recipe
from planner.cards.card import GIB
from planner.memory.allocator import replay
from planner.report.page import Page
from planner.report.tables import mib
from planner.trace.trace import trace_step

CPU_RECIPE = Path("recipes/cpu_demo.yaml")


def plan_for_cpu(recipe: Recipe | None, path: Path | None, as_json: bool, page: Page) -> int:
    """Report that there is no GPU, and the host memory that a recipe takes on the CPU.

    Args:
        recipe: None takes `CPU_RECIPE`, if it exists.

    Returns:
        The exit code: 0 if the recipe fits, 1 if not.
    """
    page.show("torch finds no GPU on this machine; name the GPUs of another one: moco-plan --gpus 2 --vram 8")
    if recipe is None and CPU_RECIPE.is_file():
        recipe, path = load_recipe(CPU_RECIPE), CPU_RECIPE
    if recipe is None:
        if as_json:
            print(json.dumps({"hardware": {"gpu": None, "num_devices": 0}, "candidates": [], "chosen": None}))
        return 0
    with console.status(f"tracing {recipe.encoder.name} for the CPU"):
        peak_bytes = replay(trace_step(recipe, None, steps=2).events).peak_requested_bytes
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    page.show(
        f"{escape(str(path))} on the CPU: {mib(peak_bytes)} MiB of tensors at the peak, beside Python and torch; this "
        f"machine has {machine_bytes / GIB:.1f} GiB. Predicted, not measured."
    )
    if as_json:
        fields = {
            "hardware": {"gpu": None, "num_devices": 0, "machine_bytes": machine_bytes},
            "candidates": [],
            "chosen": {"peak_allocated_bytes": peak_bytes, "fits": peak_bytes < machine_bytes, "evidence": "predicted"},
            "recipe": str(path),
        }
        print(json.dumps(fields, indent=2))
    return 0 if peak_bytes < machine_bytes else 1
