"""The command `moco-export`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from moco_accel.common.console import console, run_command, user_errors
from moco_accel.common.errors import UserError, error_reason

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

FormatName = Literal["transformers", "torchvision", "timm", "torchgeo", "onnx"]


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a run or of one checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    format_name: Annotated[FormatName, typer.Option("--format", help="Target library; --format transformers")],
    which: Annotated[
        Literal["latest", "best"], typer.Option(help="Checkpoint of a run: the newest, or the best by kNN.")
    ] = "latest",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing export in OUT.")] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Also upload OUT; --push-to-hub user/name")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result to stdout as JSON.")] = False,
) -> None:
    """Export a pretrained encoder for another library, with a model card.

    The export is read back in that library and its features are compared
    before OUT appears.

    Example: moco-export runs/demo exported/demo --format timm
    """
    with user_errors():
        with console.status("loading the encoder"):
            from moco_accel.export.export import check_output, export_encoder, get_format
            from moco_accel.export.trained_encoder import find_trained_encoder

            export_format = get_format(format_name)
            check_output(out, overwrite, export_format)
            if push_to_hub is not None:
                _check_repository(push_to_hub)
            trained = find_trained_encoder(checkpoint, which)
        with console.status(f"writing and reading back, {format_name}"):
            difference = export_encoder(trained, out, export_format, overwrite)
        comparison = f"not read back: {export_format.reader} is not installed"
        if difference is not None:
            comparison = f"features read back with {export_format.reader} differ by at most {difference:.1e}"
        line = f"wrote {out}: {trained.recipe.encoder.name} after step {trained.step}; {comparison}"
        console.print(escape(line), soft_wrap=True)
        if push_to_hub is not None:
            with console.status("uploading"):
                address = _upload(out, push_to_hub)
            console.print(escape(f"uploaded to {address}"), soft_wrap=True)
        if as_json:
            result = {"out": str(out), "format": format_name, "step": trained.step, "worst_difference": difference}
            typer.echo(json.dumps(result))


def main() -> None:
    """Run `moco-export`. Exit code 0: success; 2: user error."""
    run_command(app)


def _check_repository(name: str) -> None:
    """Raise UserError if `name` does not have the form user/name, or no token of the hub is available."""
    from huggingface_hub import get_token

    if not _REPOSITORY.fullmatch(name):
        raise UserError(f"--push-to-hub={name!r} is not a repository name; --push-to-hub user/name works")
    if not get_token():
        raise UserError("--push-to-hub needs a token, and none was found; run hf auth login, or set HF_TOKEN")


def _upload(folder: Path, name: str) -> str:
    """Create the repository `name` on the hub if it does not exist, and upload `folder`; return its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    client_error: Any = HfHubHTTPError.__bases__[0]  # the HTTP client differs between versions of the hub library
    try:
        address = api.create_repo(name, repo_type="model", exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by moco-export")
    except (HfHubHTTPError, client_error, OSError) as error:
        raise UserError(
            f"--push-to-hub={name}: upload to {api.endpoint} failed ({error_reason(error, 200)}); {folder} is written, "
            f"and hf upload {name} {folder} uploads it later"
        ) from None
    return str(address)


if __name__ == "__main__":
    main()
