"""Errors in one line that a user can act on."""

from __future__ import annotations

import re

MAX_NAME_CHARACTERS, _MAX_MESSAGE_CHARACTERS = 60, 3000
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class UserError(ValueError):
    """A user's mistake. The message names the field, its value, the rule and a value that works. Exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(to_single_line(message))


def to_single_line(message: str) -> str:
    """Replace control characters, and cut long messages: they may quote names from untrusted files."""
    text = _CONTROL_CHARACTERS.sub(" ", message)
    return text if len(text) <= _MAX_MESSAGE_CHARACTERS else text[: _MAX_MESSAGE_CHARACTERS - 1] + "…"


def short_repr(value: object, limit: int = MAX_NAME_CHARACTERS) -> str:
    """Return `repr(value)`, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def count_of(number: int, what: str) -> str:
    """Return `1 file`, or `1,200 files`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def error_reason(error: BaseException, limit: int = 500) -> str:
    """Return an error's message in one line of at most `limit` characters; its type if it has no message."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
