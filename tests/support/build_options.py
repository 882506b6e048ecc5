"""Follow the options that errors and notes of `moco-data build` offer."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.builds import build
from support.geo_files import rows_of

from moco_accel.common.errors import UserError


def options_in(message: str) -> list[dict[str, list[str]]]:
    """Return the options that an error or a note names, each as arguments of `build`."""
    found = []
    for text in re.findall(r"(?:--(?:bands|band-names|only) (?:'[^']*'|[^ ;]+) ?)+", message):
        words = shlex.split(text)
        pairs = list(zip(words[::2], words[1::2], strict=True))
        arguments = {flag[2:].replace("-", "_"): word.split(",") for flag, word in pairs if flag != "--only"}
        only = [word for flag, word in pairs if flag == "--only"]
        if only or "bands" in arguments:  # not a second order of names
            found.append(arguments | ({"only": only} if only else {}))
    return found


def refused(source: Path, **given: Any) -> str:
    """Return the message of a build that is refused."""
    with pytest.raises(UserError) as caught:
        build(source, source.parent / "none", tile_size=32, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def follow_each(source: Path, message: str, **given: Any) -> list[set[str]]:
    """Build with each option of a message; return the files of each build."""
    paths = []
    for number, option in enumerate(options_in(message)):
        out = source.parent / f"followed{number}"
        build(source, out, tile_size=32, overwrite=True, **{**given, **option})
        paths.append({row["path"] for row in rows_of(out)})
    return paths
