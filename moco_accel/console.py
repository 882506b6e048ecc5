"""What every command prints through: one rich console on stderr, progress bars, and errors in one line."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from moco_accel.recipe_text import RecipeError

console = Console(stderr=True, highlight=False, emoji=False)
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a user's mistake into one line and exit code 2; leave our own mistakes their traceback."""
    try:
        yield
    except RecipeError as error:
        _end_with(str(error))
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        where = f": {error.filename}" if error.filename else ""
        _end_with(f"{error.strerror}{where}; free some space, or write to another folder")


def _end_with(message: str) -> NoReturn:
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
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
        _end_with(_explain(error))
    sys.exit(code)


def _explain(error: Any) -> str:
    """What typer says of a wrong option; with its value, and the default, where typer (0.29) keeps them to itself."""
    text = " ".join(error.format_message().split())
    details: Any = getattr(error.__cause__, "errors", list)()
    if details and "input" in details[0]:
        text = text.replace(": ", f"={details[0]['input']!r}: ", 1)
    option: Any = getattr(error, "param", None)
    default = getattr(option, "default", None)
    if default is not None:
        text += f"; {option.opts[0]} {default} works"
    return text


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
