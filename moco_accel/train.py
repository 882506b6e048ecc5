"""Train MoCo v3 from a recipe: `accelerate launch moco_accel/train.py --recipe recipes/dual8gb.yaml`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from moco_accel.common.console import console, run_command, user_errors
from moco_accel.processes.signals import StopRequest
from moco_accel.recipe.launch_command import LaunchOptions
from moco_accel.recipe.load import load_recipe

_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command(
    epilog="Example: accelerate launch --config_file accelerate_configs/dual_gpu.yaml moco_accel/train.py "
    "--recipe recipes/dual8gb.yaml --set data.source=data/tiles"
)
def train(
    recipe: Annotated[Path, typer.Option(help="Path of the recipe; moco-plan writes one.")],
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run.  [default: runs/ and the recipe's name]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the folder's latest checkpoint.")] = False,
    allow_recipe_change: Annotated[
        bool, typer.Option("--allow-recipe-change", help="Allow --resume with a recipe that changes the result.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a recipe field; VALUE is text or YAML."),
    ] = None,
) -> None:
    """Train MoCo v3 from a recipe.

    Writes recipe.yaml (resolved), metrics.jsonl, summary.json, checkpoints/ and latest to the folder of the run.
    """
    with user_errors(), StopRequest() as stop:
        loaded = load_recipe(recipe, overrides)
        if loaded.hardware.vram_gib is not None:
            set_allocator(loaded.memory.expandable_segments)
        from moco_accel.training.run import run_training

        folder = output_dir or Path("runs") / recipe.stem
        options = LaunchOptions(str(recipe), str(folder), resume, allow_recipe_change, tuple(overrides or ()))
        run_training(loaded, folder, resume, stop, allow_recipe_change, options)


def set_allocator(expandable_segments: bool) -> None:
    """Set the variable by which torch configures CUDA's allocator. Call it before torch is imported."""
    if not expandable_segments:
        return
    wanted = "expandable_segments:True"
    found = next((os.environ[name] for name in _ALLOCATOR_VARIABLES if name in os.environ), None)
    if found is None and sys.platform == "linux":
        os.environ[_ALLOCATOR_VARIABLES[0]] = wanted
    elif (found is None or wanted not in found) and os.environ.get("RANK", "0") == "0":
        why = "only Linux supports it" if found is None else f"your environment sets {escape(found)}"
        console.print(
            f"memory.expandable_segments has no effect ({why}): expect a few percent more memory than planned"
        )


if __name__ == "__main__":
    run_command(app)
