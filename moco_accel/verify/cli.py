"""`moco-verify`: check that what a recipe builds is MoCo v3."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from moco_accel.common.console import console, run_command, user_errors
from moco_accel.recipe.load import load_recipe

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command(epilog="Example: moco-verify --recipe recipes/dual8gb.yaml")
def verify(
    recipe: Annotated[Path, typer.Option(help="The recipe to check.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a recipe field; VALUE is text or YAML."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON to stdout.")] = False,
) -> None:
    """Check that a recipe's networks and training step are those of MoCo v3, in seconds and without a GPU.

    Exit codes: 0 all checks passed, 1 a check failed, 2 the recipe is wrong.
    """
    with user_errors():
        loaded = load_recipe(recipe, overrides)
    from moco_accel.verify.checks import run_checks

    begun = time.perf_counter()
    with console.status(f"checking {escape(str(recipe))}"):
        checks = list(run_checks(loaded))
    failed = sum(not check.passed for check in checks)
    if as_json:
        typer.echo(json.dumps({"recipe": str(recipe), "passed": not failed, "checks": [asdict(c) for c in checks]}))
        raise typer.Exit(1 if failed else 0)
    console.print(
        f"[bold]{escape(str(recipe))}[/]: {loaded.encoder.name}, networks as the recipe builds them; "
        "steps on 16 tiles of at most 32 pixels, in fp32, on the CPU",
        soft_wrap=True,
    )
    table = Table("", "check", "found", box=None, pad_edge=False)
    for check in checks:
        table.add_row("[green]✓[/]" if check.passed else "[bold red]✗[/]", escape(check.name), escape(check.found))
    console.print(table)
    verdict = f"[bold red]{failed} of {len(checks)} checks failed[/]" if failed else f"all {len(checks)} checks passed"
    console.print(f"{verdict} in {time.perf_counter() - begun:.0f} s")
    raise typer.Exit(1 if failed else 0)


def main() -> None:
    """Run `moco-verify`."""
    run_command(app)
