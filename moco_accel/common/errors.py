"""Errors that a user can act on, in one line."""

from __future__ import annotations

import re

LONGEST_NAME, _LONGEST_MESSAGE = 60, 3000


_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class UserError(ValueError):
    """The user's mistake: one line that names field, value, rule and a value that works. Exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(in_one_line(message))


def in_one_line(message: str) -> str:
    """`message` without what would break its line, or steer a terminal: it may quote names that others gave."""
    text = _UNSEEN.sub(" ", message)
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"


def short(value: object, limit: int = LONGEST_NAME) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
