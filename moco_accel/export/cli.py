"""moco-export: a run's encoder for transformers, torchvision, timm, torchgeo or ONNX, with a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from moco_accel.common.console import console, user_errors

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
FormatName = Literal["transformers", "torchvision", "timm", "torchgeo", "onnx"]


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a run, or of one checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    format_name: Annotated[FormatName, typer.Option("--format", help="Whose; --format transformers")],
    which: Annotated[
        Literal["latest", "best"], typer.Option(help="Of a run: its newest checkpoint, or the best by kNN.")
    ] = "latest",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that OUT holds.")] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload OUT, too; --push-to-hub user/name")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON, alone, to stdout.")] = False,
) -> None:
    """Hand a pretrained encoder on, in the form another library loads, with a model card.

    What was written is read back in that library and its features compared, before OUT appears.

    Example: moco-export runs/demo exported/demo --format timm
    """
    with user_errors():
        with console.status("loading the encoder"):
            from moco_accel.export import exporting, hub
            from moco_accel.export.trained import find_trained

            chosen = exporting.format_named(format_name)
            exporting.refuse_unusable(out, overwrite, chosen)
            if push_to_hub is not None:
                hub.check_name(push_to_hub)
                hub.check_token()
            trained = find_trained(checkpoint, which)
        with console.status(f"writing and reading back, {format_name}"):
            worst = exporting.export(trained, out, chosen, overwrite)
        compared = (
            f"not read back: {chosen.reads_with} is not installed"
            if worst is None
            else f"features read back with {chosen.reads_with} differ by at most {worst:.1e}"
        )
        said = f"wrote {out}: {trained.recipe.encoder.name} after step {trained.step}; {compared}"
        console.print(escape(said), soft_wrap=True)
        if push_to_hub is not None:
            with console.status("uploading"):
                address = hub.push(out, push_to_hub)
            console.print(escape(f"uploaded to {address}"), soft_wrap=True)
        if as_json:
            done = {"out": str(out), "format": format_name, "step": trained.step, "worst_difference": worst}
            typer.echo(json.dumps(done))


def main() -> None:
    """Entry point of `moco-export`. Exit codes: 0 done, 2 the user's mistake."""
    from moco_accel.common.console import run_command

    run_command(app)


if __name__ == "__main__":
    main()
