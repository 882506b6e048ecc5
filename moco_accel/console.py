"""What every command prints through: one rich console on stderr, progress bars, and errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from moco_accel.recipe_text import RecipeError

console = Console(stderr=True, highlight=False)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a user's mistake into one line and exit code 2; leave our own mistakes their traceback."""
    try:
        yield
    except RecipeError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)


def run_command(app: typer.Typer) -> NoReturn:
    """Run a command line; what is wrong with its options ends like any of the user's mistakes."""
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer's own errors have, wherever a version keeps them
            raise
        console.print(f"[bold red]error:[/] {escape(' '.join(error.format_message().split()))}", soft_wrap=True)
        sys.exit(2)
    sys.exit(code)


def progress_bar() -> Progress:
    """A bar for work that takes more than two seconds: what, how much of it, elapsed and remaining time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
