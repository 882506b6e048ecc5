"""Match paths with globs as pathlib does, in which ** stands for any number of folders, linked ones too; find globs."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

_SEPARATORS = "_-. "


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


def find_globs(wanted: Sequence[str], others: Sequence[str], at_most: int = 1) -> list[str]:
    """Return globs of which each path in `wanted` matches one, and none in `others` any; empty if no simple ones do.

    They are sought by folder, by suffix, by ending and by beginning of the names.
    """
    for globs in _candidates(wanted):
        if len(globs) <= at_most:
            matches = any_matcher(globs)
            if all(map(matches, wanted)) and not any(map(matches, others)):
                return globs
    return []


def any_matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that checks whether a path matches one of several globs; one without a slash is of names."""
    matchers = [glob_matcher(pattern if "/" in pattern else f"**/{pattern}") for pattern in patterns]
    return lambda path: any(matches(path) for matches in matchers)


def _candidates(wanted: Sequence[str]) -> Iterator[list[str]]:
    paths = [PurePosixPath(name) for name in wanted]
    if len(paths) == 1:
        yield ["/".join(map(glob.escape, paths[0].parts))]
    above = PurePosixPath(os.path.commonpath([f"/{path.parent}" for path in paths])).relative_to("/")
    suffixes = {path.suffix for path in paths}
    suffix = glob.escape(suffixes.pop()) if len(suffixes) == 1 else ""
    depths = {len(path.parts) for path in paths}
    if above.parts:
        below = "*" if depths == {len(above.parts) + 1} else "**/*"
        yield [f"{glob.escape(str(above))}/{below}{suffix}"]
    for part in sorted(set.intersection(*(set(path.parts[:-1]) for path in paths))):
        yield [f"**/{glob.escape(part)}/**/*{suffix}"]
    flat = "" if depths == {1} else "**/"
    if suffix:
        yield [f"{flat}*{suffix}"]
    names = [path.name for path in paths]
    ending = os.path.commonprefix([name[::-1] for name in names])  # noqa: RUF071 - characters are compared
    beginning = os.path.commonprefix(names)  # noqa: RUF071 - characters are compared
    for cut in (_from_separator, str):
        if len(cut(ending)) > 1:
            yield [f"{flat}*{glob.escape(cut(ending)[::-1])}"]
        if cut(beginning):
            yield [f"{flat}{glob.escape(cut(beginning))}*{suffix}"]
        if above.parts and len(cut(ending)) > 1:
            yield [f"{glob.escape(str(above))}/**/*{glob.escape(cut(ending)[::-1])}"]
        if above.parts and cut(beginning):
            yield [f"{glob.escape(str(above))}/**/{glob.escape(cut(beginning))}*{suffix}"]
    tops = sorted({path.parts[0] for path in paths if len(path.parts) > 1})
    yield [f"{glob.escape(top)}/**/*" for top in tops]
    yield [
        f"{glob.escape(folder)}/*{suffix}" for folder in sorted({str(path.parent) for path in paths}) if folder != "."
    ]
    yield [f"{flat}*{glob.escape(each)}" for each in sorted({path.suffix for path in paths})]
    if len(cut_ending := _from_separator(ending)[::-1]) > 1:
        yield [f"{glob.escape(top)}/**/*{glob.escape(cut_ending)}" for top in tops]
    yield [glob.escape(name) for name in wanted]


def _from_separator(text: str) -> str:
    """Return the beginning of a text up to its last separator, which is kept."""
    return text[: max(text.rfind(separator) for separator in _SEPARATORS) + 1]
