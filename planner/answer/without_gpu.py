"""The answer on a machine without a GPU to which none was named."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rich.markup import escape

from moco_accel.common.console import console
from moco_accel.recipe.load import load_recipe
from moco_accel.recipe.schema import Recipe
from planner.answer.answer_json import cpu_json
from planner.answer.report import Page, mib
from planner.cards.devices import GIB
from planner.memory.allocator import replay
from planner.trace.trace import trace_step

CPU_RECIPE = Path("recipes/cpu_demo.yaml")


def without_gpu(recipe: Recipe | None, path: Path | None, as_json: bool, page: Page) -> int:
    """Say that there is none, and how much of the machine's own memory a CPU recipe takes. Returns the exit code."""
    page.show("torch sees no GPU here; name the ones you have elsewhere: moco-plan --gpus 2 --vram 8")
    if recipe is None and CPU_RECIPE.is_file():
        recipe, path = load_recipe(CPU_RECIPE), CPU_RECIPE
    if recipe is None:
        if as_json:
            print(json.dumps({"hardware": {"gpu": None, "num_devices": 0}, "candidates": [], "chosen": None}))
        return 0
    with console.status(f"tracing {recipe.encoder.name} for the CPU"):
        taken = replay(trace_step(recipe, None, steps=2).events).peak_requested_bytes
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    page.show(
        f"{escape(str(path))} on the CPU: {mib(taken)} MiB of tensors at the peak, beside Python and torch; this "
        f"machine has {have / GIB:.1f} GiB. Predicted, not measured."
    )
    if as_json:
        print(cpu_json(taken, have, str(path)))
    return 0 if taken < have else 1
