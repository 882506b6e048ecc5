"""`moco-plan`: which recipe fits the GPUs one has. No torch is imported until it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command(
    epilog="Example: moco-plan --gpus 2 --vram 8 --tiles 500000 prints what fits two 8 GB cards and writes "
    "recipes/dual8gb.yaml."
)
def plan(
    gpus: Annotated[int | None, typer.Option(help="How many GPUs.", show_default="those of this machine, or 1")] = None,
    vram: Annotated[float | None, typer.Option(help="GB each is sold with: 8 for an 8 GB card.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Plan for this encoder alone.", show_default="a table")] = None,
    image_size: Annotated[int, typer.Option(help="Pixels of a crop's side.")] = 224,
    bands: Annotated[int, typer.Option(help="Bands of a tile.")] = 3,
    global_batch: Annotated[int, typer.Option(help="Tiles per optimizer step, over all GPUs.")] = 4096,
    precision: Annotated[
        Literal["no", "bf16", "fp16"] | None, typer.Option(help="Compute in.", show_default="what the card has")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw_8bit, adamw or lars.")] = "adamw_8bit",
    contrast_over: Annotated[
        Literal["global_batch", "micro_batch"], typer.Option(help="Where negatives come from.")
    ] = "global_batch",
    tiles: Annotated[int | None, typer.Option(min=2, help="Tiles of the data set, to say how many days.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to train.")] = 300,
    recipe: Annotated[
        Path | None, typer.Option(help="Does this recipe fit? Its own GPUs unless others are named.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the recipe goes.", show_default="recipes/dual8gb.yaml …")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything as JSON on stdout, and nothing else there.")
    ] = False,
) -> None:
    """Say, without a GPU, what fits into GPU memory and write the recipe that does.

    Exit codes: 0 it fits, 1 it does not, 2 the question is wrong.
    """
    from moco_accel.console import user_errors

    with user_errors():
        from planner.request import Request, check

        request = Request(
            gpus=1 if gpus is None else gpus,
            vram_gib=vram,
            encoder=encoder,
            image_size=image_size,
            bands=bands,
            global_batch_size=global_batch,
            optimizer=optimizer,
            contrast_over=contrast_over,
            epochs=epochs,
            **({} if precision is None else {"mixed_precision": precision}),
        )
        check(request, tiles)
        from planner import answer

        code = answer.run(request, gpus, precision, recipe, output, tiles, as_json)
    raise typer.Exit(code)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
