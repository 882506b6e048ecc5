"""Train MoCo v3 from a recipe: `accelerate launch moco_accel/train.py --recipe recipes/dual8gb.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moco_accel.console import user_errors

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
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a field of the recipe.")
    ] = None,
) -> None:
    """Train MoCo v3 as a recipe says.

    The run's folder gets recipe.yaml (resolved), metrics.jsonl, summary.json, checkpoints/ and latest.
    """
    with user_errors():
        from moco_accel.loop import run_training
        from moco_accel.recipe import load_recipe

        run_training(load_recipe(recipe, overrides), output_dir or Path("runs") / recipe.stem, resume)


if __name__ == "__main__":
    app()
