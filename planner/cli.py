"""`moco-plan`: find a recipe that fits the given GPUs. Imports no torch until it is needed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from moco_accel.common.console import run_command, user_errors

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
_gpu_option = partial(typer.Option, rich_help_panel="GPUs")
_training_option = partial(typer.Option, rich_help_panel="Training")
_output_option = partial(typer.Option, rich_help_panel="Output")


@app.command(
    epilog="Examples:\n\n"
    "moco-plan --gpus 2 --vram 8 --tiles 500000 — what fits two 8 GB cards; writes recipes/dual8gb.yaml\n\n"
    "moco-plan --gpu rtx3070 --encoder resnet50 --bands 13 — one named card, Sentinel-2\n\n"
    "moco-plan --nodes 4 --gpus 8 --vram 24 --slurm job.sbatch — four nodes of eight GPUs, and a Slurm job\n\n"
    "moco-plan --recipe recipes/paper_vit_small.yaml --vram 16 — does it fit, and which changes make it fit"
)
def plan(
    context: typer.Context,
    gpus: Annotated[int | None, _gpu_option(help="GPUs per node.", show_default="those of this machine, or 1")] = None,
    nodes: Annotated[int | None, _gpu_option(help="Nodes with the same GPUs.", show_default="1")] = None,
    vram: Annotated[str | None, _gpu_option(help="Marketed memory of a GPU in GB: 8; or 8,12 for two GPUs.")] = None,
    gpu: Annotated[str | None, _gpu_option(help="Name of the GPU: rtx3070.")] = None,
    list_gpus: Annotated[bool, _gpu_option("--list-gpus", help="List the GPUs that are known by name.")] = False,
    encoder: Annotated[
        str | None, _training_option(help="Plan for this encoder only.", show_default="a table of six")
    ] = None,
    image_size: Annotated[int, _training_option(help="Side of a crop in pixels.")] = 224,
    bands: Annotated[int, _training_option(help="Bands of a tile.")] = 3,
    global_batch: Annotated[
        int | None,
        _training_option(help="Tiles per optimizer step, over all GPUs.", show_default="4096, or less for few --tiles"),
    ] = None,
    precision: Annotated[
        Literal["no", "bf16", "fp16"] | None,
        _training_option(help="Mixed precision.", show_default="bf16, or fp16 on older GPUs"),
    ] = None,
    optimizer: Annotated[str, _training_option(help="adamw_8bit, adamw or lars.")] = "adamw_8bit",
    contrast_over: Annotated[
        Literal["global_batch", "micro_batch"], _training_option(help="Where negatives come from.")
    ] = "global_batch",
    tiles: Annotated[int | None, _training_option(min=2, help="Tiles of your data set, to predict the days.")] = None,
    epochs: Annotated[int, _training_option(min=1, help="Epochs to train.")] = 300,
    recipe: Annotated[
        Path | None, _training_option(help="Check whether this recipe fits its own GPUs, or those that are named.")
    ] = None,
    output: Annotated[
        Path | None, _output_option(help="Where to write the recipe.", show_default="recipes/dual8gb.yaml …")
    ] = None,
    slurm: Annotated[
        Path | None,
        _output_option(metavar="FILE", help="Also write a Slurm job: sbatch FILE starts and resumes the run."),
    ] = None,
    measure: Annotated[bool, _output_option("--measure", help="Also run the step on this machine's GPU.")] = False,
    save: Annotated[Path | None, _output_option(help="Save the report: plan.svg, .html or .txt.")] = None,
    as_json: Annotated[bool, _output_option("--json", help="Print the plan as JSON on stdout.")] = False,
) -> None:
    """Predict, without a GPU, what fits into GPU memory, and write a recipe that fits.

    Exit codes: 0 it fits, 1 it does not fit, 2 an option is wrong.
    """
    with user_errors():
        if list_gpus:
            from planner.cards.lookup import show_cards

            show_cards(as_json)
            return
        from planner.answer.checks import check_recipe_options
        from planner.answer.plan import run_plan
        from planner.answer.request import PlanOptions, Request, default_global_batch

        note = None
        if global_batch is None:
            global_batch, note = default_global_batch(gpus or 1, nodes or 1, tiles)
        request = Request(
            gpus=gpus or 1,
            nodes=nodes or 1,
            encoder=encoder,
            image_size=image_size,
            bands=bands,
            global_batch_size=global_batch,
            mixed_precision=precision,
            optimizer=optimizer,
            contrast_over=contrast_over,
            epochs=epochs,
        )
        if recipe is not None:
            sources = {name: context.get_parameter_source(name) for name in context.params}
            given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
            check_recipe_options(recipe, given)
        code = run_plan(
            PlanOptions(request, gpu, vram, gpus, recipe, output, tiles, as_json, save, measure, nodes, slurm, note)
        )
    raise typer.Exit(code)


def main() -> None:
    """Run `moco-plan`; the entry point of the installed command."""
    run_command(app)


if __name__ == "__main__":
    main()
