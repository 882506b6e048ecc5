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
from moco_accel.recipe.launch_command import Asked
from moco_accel.recipe.load import load_recipe

_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command(
    epilog="Example: accelerate launch --config_file accelerate_configs/dual_gpu.yaml moco_accel/train.py "
    "--recipe recipes/dual8gb.yaml --set data.source=data/tiles"
)
def train(
    recipe: Annotated[Path, typer.Option(help="The recipe; moco-plan writes one.")],
    output_dir: Annotated[
        Path | None, typer.Option(help="The run's folder.  [default: runs/ and the recipe's name]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's latest checkpoint.")] = False,
    allow_recipe_change: Annotated[
        bool, typer.Option("--allow-recipe-change", help="Let --resume go on with a recipe that changes the result.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a field: text as it is, all else as YAML."),
    ] = None,
) -> None:
    """Train MoCo v3 as a recipe says.

    The run's folder gets recipe.yaml (resolved), metrics.jsonl, summary.json, checkpoints/ and latest.
    """
    with user_errors(), StopRequest() as stop:
        loaded = load_recipe(recipe, overrides)
        if loaded.hardware.vram_gib is not None:
            set_allocator(loaded.memory.expandable_segments)
        from moco_accel.training.loop import run_training

        folder = output_dir or Path("runs") / recipe.stem
        asked = Asked(str(recipe), str(folder), resume, allow_recipe_change, tuple(overrides or ()))
        run_training(loaded, folder, resume, stop, allow_recipe_change, asked)


def set_allocator(expandable_segments: bool) -> None:
    """Tell CUDA's allocator what a recipe says, by the variable that torch reads; call it before torch is imported."""
    if not expandable_segments:
        return
    wanted = "expandable_segments:True"
    found = next((os.environ[name] for name in _ALLOCATOR_VARIABLES if name in os.environ), None)
    if found is None and sys.platform == "linux":
        os.environ[_ALLOCATOR_VARIABLES[0]] = wanted
    elif (found is None or wanted not in found) and os.environ.get("RANK", "0") == "0":
        why = "only Linux has them" if found is None else f"your environment says {escape(found)}"
        console.print(f"memory.expandable_segments is not in force ({why}): expect some per cent more than planned")


if __name__ == "__main__":
    run_command(app)
