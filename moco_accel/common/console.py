"""Console of all commands: rich output on stderr, progress bars, and errors in one line."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from moco_accel.common.errors import UserError

console = Console(stderr=True, highlight=False, emoji=False)
_MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def print_note(text: str) -> None:
    """Print a line about the tiles, on the first rank only: every rank opens the same sources."""
    if os.environ.get("RANK", "0") == "0":
        console.print(text, soft_wrap=True, markup=False)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a user's mistake into one line and exit code 2. Other errors keep their traceback."""
    try:
        yield
    except UserError as error:
        _exit_with(str(error))
    except UnicodeEncodeError as error:
        if error.object.isprintable():  # only a file name that is not valid UTF-8 is the user's mistake
            raise
        _exit_with(f"{error.object!r} is not valid UTF-8; another name works, or LC_ALL=C.UTF-8")
    except OSError as error:
        if error.errno not in _MACHINE_ERRORS:
            raise
        where = f": {error.filename}" if error.filename else ""
        _exit_with(f"{error.strerror}{where}; free some space, or write to another folder")


def _exit_with(message: str) -> NoReturn:
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(2)


def run_command(app: typer.Typer) -> NoReturn:
    """Run a command line. A wrong option ends in one line and exit code 2, as any user's mistake does."""
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's errors have it; their module depends on its version
            raise
        message = _describe_usage_error(error, _find_command(error, app))
        if not message:  # without arguments, the help has been printed
            sys.exit(2)
        _exit_with(message)
    sys.exit(code)


def _find_command(error: Any, app: typer.Typer) -> Any:
    """Return the command that was called, which errors of typer's parser do not carry."""
    if getattr(error, "ctx", None) is not None:
        return error.ctx.command
    command: Any = typer.main.get_command(app)
    return getattr(command, "commands", {}).get(sys.argv[1], command)


def _describe_usage_error(error: Any, command: Any) -> str:
    """Rewrite typer's message in the form of our own: option, value, rule, a value that works."""
    text, option = " ".join(error.format_message().split()).rstrip("."), getattr(error, "param", None)
    if option is None:
        return text + _hint(text, error, command)
    name = option.opts[0] if option.opts[0].startswith("-") else option.metavar or option.name
    if hasattr(error, "param_type"):  # the option is missing
        return f"{name} is missing; e.g. {_examples(command)[-1]}"
    details: Any = getattr(error.__cause__, "errors", list)()  # if there are none, the text has the value
    value = f"={details[0]['input']!r}" if details else ""
    rule = re.sub(r"^Value error, |, unable to .*", "", error.message.rstrip("."))
    return f"{name}{value}: {rule[0].lower()}{rule[1:]}" + _working_value(name, option, command)


def _hint(text: str, error: Any, command: Any) -> str:
    """Return what works instead of an option without its value, or of an unknown word."""
    if not text or "Did you mean" in text or getattr(error, "possibilities", None):
        return ""
    name: Any = getattr(error, "option_name", None)
    option = next((option for option in command.params if name in option.opts), None)
    if option is not None and option.is_flag:
        return f"; {name} alone works"
    return (_working_value(name, option, command) if option is not None else "") or "; --help lists the options"


def _working_value(name: str, option: Any, command: Any) -> str:
    """Return "; NAME VALUE works": the option's default, or a value from its help or the command's examples."""
    value = option.default
    if value is None:
        texts = [option.help or "", *_examples(command)]
        found = re.search(rf"{option.opts[0]} ([^\s;)]+)|\(default: (\d[\d.]*)\)", "\n".join(texts))
        value = (found[1] or found[2]).rstrip(".,") if found else None
    return "" if value in (None, "") else f"; {name} {value} works"


def _examples(command: Any) -> list[str]:
    """Return the command lines in a command's help."""
    text = f"{command.help or ''}\n{command.epilog or ''}"
    return [line.strip() for line in re.findall(r"(?:moco-[a-z]+|accelerate launch) [^—`\n]+", text)]


def progress_bar(*details: TextColumn) -> Progress:
    """Return a progress bar with elapsed and remaining time, and `details` after the count."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *details,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
