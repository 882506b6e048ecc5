"""Match paths with globs as pathlib does, in which ** stands for any number of folders, linked ones too."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path


def split_glob(source: str) -> tuple[Path, str]:
    """Split a glob into a folder and a pattern. A part that exists under its literal name is no pattern."""
    parts = Path(source).parts
    literal = max(count for count in range(len(parts) + 1) if Path(*parts[:count]).exists())
    return Path(*parts[:literal]), "/".join(parts[literal:])


def glob_matcher(pattern: str) -> Callable[[str], bool]:
    """Return a function that checks whether a path matches a glob; both are relative to one folder."""
    matches = re.compile(_regex(pattern), re.S).fullmatch
    return lambda path: matches(path) is not None


def _regex(pattern: str) -> str:
    """Return a regular expression for paths that match a glob, in which ** stands for any number of folders."""
    *folders, name = pattern.split("/")
    parts = ["(?:[^/]+/)*" if part == "**" else f"(?:{_part_regex(part)})/" for part in folders]
    return "".join(parts) + ("(?:[^/]+/)*[^/]+" if name == "**" else _part_regex(name))


def _part_regex(part: str) -> str:
    wild = {"*": "[^/]*", "?": "[^/]"}
    pieces = re.findall(r"\[!?\]?[^]]*\]|.", part, re.S)
    as_set = (f"[{'^' * (piece[1] == '!')}{re.escape(piece[1:-1].removeprefix('!'))}]" for piece in pieces if piece[1:])
    return "".join(next(as_set).replace("\\-", "-") if p[1:] else wild.get(p, re.escape(p)) for p in pieces)
