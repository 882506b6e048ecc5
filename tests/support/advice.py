"""Read the remedy in an error's message, apply it, and try again."""

from __future__ import annotations

import re
from collections.abc import Callable

from moco_accel.common.errors import UserError

_VALUE = r"(\[[^\]]*\]|'[^']*'|\"[^\"]*\"|[^\s,;]+)"
MAX_ROUNDS = 2


def advised_fields(message: str) -> list[str]:
    """Return the `section.field=value` overrides that a message advises; empty if it advises none."""
    field = re.match(r"([a-z_]+\.[a-z_0-9]+)(?:=| is missing)", message)
    clause = message.rpartition("; ")[2]
    named = [f"{name}={value}" for name, value in re.findall(rf"\b([a-z_]+\.[a-z_0-9]+)={_VALUE}", clause)]
    if named and re.search(r"\bworks?\b", clause):
        before = clause.partition(" work")[0].split(" or ")[0]  # of alternatives, the first
        return [f"{name}={value}" for name, value in re.findall(rf"\b([a-z_]+\.[a-z_0-9]+)={_VALUE}", before)]
    if field is None:
        return []
    if found := re.search(r"(?:nearest|one of): ([^,;]+)", message):
        return [f"{field[1]}={found[1]}"]
    if found := re.match(r"(.+?) works?\b", clause):
        return [f"{field[1]}={found[1].split(' or ')[0]}"]
    return []


def advised_options(message: str) -> list[str]:
    """Return the command-line words that a message advises, such as `["--split", "random"]`."""
    clause = message.rpartition("; ")[2].partition(" work")[0]
    found = re.search(rf"(--[a-z-]+)(?:[ =]{_VALUE})?", clause)
    return [] if found is None else [word.strip("'") for word in found.groups() if word]


def follow_advice(attempt: Callable[[list[str]], object], given: list[str], read: Callable[[str], list[str]]) -> int:
    """Call `attempt(given)`, and with what each message advises, until it works; return the number of errors.

    Raises:
        AssertionError: If a message advises nothing, or the advice does not work in `MAX_ROUNDS` rounds.
    """
    messages: list[str] = []
    while len(messages) <= MAX_ROUNDS:
        try:
            attempt(given)
        except UserError as error:
            messages.append(str(error))
        else:
            return len(messages)
        advice = read(messages[-1])
        assert advice, f"no advice in: {messages[-1]}"
        given = [*given, *advice]
    raise AssertionError("advice that does not work: " + " → ".join(messages))
