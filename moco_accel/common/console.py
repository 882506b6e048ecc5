"""What every command prints through: one rich console on stderr, progress bars, and errors in one line."""

from __future__ import annotations

import errno
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
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a user's mistake into one line and exit code 2; leave our own mistakes their traceback."""
    try:
        yield
    except UserError as error:
        _end_with(str(error))
    except UnicodeEncodeError as error:
        if error.object.isprintable():  # else it was a name of bytes that are no text, which arrow can't open
            raise
        _end_with(f"{error.object!r} is no text in UTF-8; another name works, or LC_ALL=C.UTF-8")
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
        message = _explain(error, _command_of(error, app))
        if not message:  # no argument at all: the help has been printed
            sys.exit(2)
        _end_with(message)
    sys.exit(code)


def _command_of(error: Any, app: typer.Typer) -> Any:
    """Which command was called: typer's parser doesn't say."""
    if getattr(error, "ctx", None) is not None:
        return error.ctx.command
    command: Any = typer.main.get_command(app)
    return getattr(command, "commands", {}).get(sys.argv[1], command)


def _explain(error: Any, command: Any) -> str:
    """What typer says of a wrong option, as our own errors are: option, value, rule, a value that works."""
    text, option = " ".join(error.format_message().split()).rstrip("."), getattr(error, "param", None)
    if option is None:
        return text + _hint(text, error, command)
    name = option.opts[0] if option.opts[0].startswith("-") else option.metavar or option.name
    if hasattr(error, "param_type"):  # a missing one's
        return f"{name} is missing; e.g. {_examples(command)[-1]}"
    details: Any = getattr(error.__cause__, "errors", list)()  # where there are none, the text has the value
    value = f"={details[0]['input']!r}" if details else ""
    rule = re.sub(r"^Value error, |, unable to .*", "", error.message.rstrip("."))
    works = _works(option, command)
    return f"{name}{value}: {rule[0].lower()}{rule[1:]}" + (f"; {name} {works} works" if works else "")


def _hint(text: str, error: Any, command: Any) -> str:
    """What works in place of an option without its value, or of a word that is none of the command's."""
    if not text or "Did you mean" in text or getattr(error, "possibilities", None):
        return ""
    name = getattr(error, "option_name", None)
    option = next((option for option in command.params if name in option.opts), None)
    if option is not None and option.is_flag:
        return f"; {name} alone works"
    works = _works(option, command) if option is not None else None
    return f"; {name} {works} works" if works else "; --help says what there is"


def _works(option: Any, command: Any) -> str | None:
    """A value that works: the default, one that the option's help says, or one of the command's examples."""
    if option.default is not None:
        return str(option.default)
    said = [option.help or "", *_examples(command)]
    found = re.search(rf"{option.opts[0]} ([^\s;)]+)|\(default: (\d[\d.]*)\)", "\n".join(said))
    return (found[1] or found[2]).rstrip(".,") if found else None


def _examples(command: Any) -> list[str]:
    """The command lines in a command's help."""
    text = f"{command.help or ''}\n{command.epilog or ''}"
    return [line.strip() for line in re.findall(r"(?:moco-[a-z]+|accelerate launch) [^—`\n]+", text)]


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
