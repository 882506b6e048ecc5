"""`moco-plan`: which recipe fits the GPUs one has. No torch is imported until it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


_WHICH, _WHAT, _ANSWER = "Which GPUs", "What to train", "The answer"


@app.command(
    epilog="Examples:\n\n"
    "moco-plan --gpus 2 --vram 8 --tiles 500000 — what fits two 8 GB cards, and recipes/dual8gb.yaml\n\n"
    "moco-plan --gpu rtx3070 --encoder resnet50 --bands 13 — one named card, Sentinel-2\n\n"
    "moco-plan --nodes 4 --gpus 8 --vram 24 --slurm job.sbatch — four machines of eight, and a job for Slurm\n\n"
    "moco-plan --recipe recipes/paper_vit_small.yaml --vram 16 — does it fit, and what would make it fit"
)
def plan(
    context: typer.Context,
    gpus: Annotated[
        int | None,
        typer.Option(
            help="How many GPUs, per node.", show_default="those of this machine, or 1", rich_help_panel=_WHICH
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(help="Machines with as many GPUs each.", show_default="1", rich_help_panel=_WHICH),
    ] = None,
    vram: Annotated[
        str | None, typer.Option(help="GB each is sold with: 8; 8,12 for unlike ones.", rich_help_panel=_WHICH)
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="A card by name: rtx3070.", rich_help_panel=_WHICH)] = None,
    list_gpus: Annotated[bool, typer.Option("--list-gpus", help="Name the cards.", rich_help_panel=_WHICH)] = False,
    encoder: Annotated[
        str | None,
        typer.Option(help="Plan for this one alone.", show_default="a table of six", rich_help_panel=_WHAT),
    ] = None,
    image_size: Annotated[int, typer.Option(help="Pixels of a crop's side.", rich_help_panel=_WHAT)] = 224,
    bands: Annotated[int, typer.Option(help="Bands of a tile.", rich_help_panel=_WHAT)] = 3,
    global_batch: Annotated[
        int, typer.Option(help="Tiles per optimizer step, over all GPUs.", rich_help_panel=_WHAT)
    ] = 4096,
    precision: Annotated[
        Literal["no", "bf16", "fp16"] | None,
        typer.Option(help="Compute in.", show_default="what the card has", rich_help_panel=_WHAT),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw_8bit, adamw or lars.", rich_help_panel=_WHAT)] = "adamw_8bit",
    contrast_over: Annotated[
        Literal["global_batch", "micro_batch"], typer.Option(help="Where negatives are.", rich_help_panel=_WHAT)
    ] = "global_batch",
    tiles: Annotated[
        int | None, typer.Option(min=2, help="Tiles you have, to say how many days.", rich_help_panel=_WHAT)
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to train.", rich_help_panel=_WHAT)] = 300,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Does this recipe fit? Its own GPUs unless others are named.", rich_help_panel=_WHAT),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Where the recipe goes.", show_default="recipes/dual8gb.yaml …", rich_help_panel=_ANSWER),
    ] = None,
    slurm: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write a job: sbatch FILE starts and resumes the run.", rich_help_panel=_ANSWER
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run the step on this machine's GPU too.", rich_help_panel=_ANSWER)
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Keep the report: plan.svg, .html or .txt.", rich_help_panel=_ANSWER)
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Everything as JSON on stdout, and nothing else.", rich_help_panel=_ANSWER),
    ] = False,
) -> None:
    """Say, without a GPU, what fits into GPU memory and write the recipe that does.

    Exit codes: 0 it fits, 1 it does not, 2 the question is wrong.
    """
    from moco_accel.common.console import user_errors

    with user_errors():
        if list_gpus:
            from planner.cards.card_list import show_cards

            show_cards(as_json)
            return
        from planner.answer.answer import Question, answer
        from planner.answer.request import Request, check_alone

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
        question = Question(request, gpu, vram, gpus, recipe, output, tiles, as_json, save, measure, nodes, slurm)
        if recipe is not None:
            check_alone(recipe, [name for name in context.params if _is_given(context, name)])
        code = answer(question)
    raise typer.Exit(code)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def main() -> None:
    from moco_accel.common.console import run_command

    run_command(app)


if __name__ == "__main__":
    main()
