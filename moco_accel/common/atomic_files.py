"""Write files atomically, and read untrusted files: no links, pipes or devices, and not more than a limit."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

_FSYNC_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a temporary file, sync and rename it: a kill, a full disk or a power cut leaves old or new content."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _FSYNC_UNSUPPORTED:  # some file systems cannot sync folders, and need not
            raise
    finally:
        os.close(handle)


def regular_file_size(path: Path) -> int:
    """Return the size of a regular file in bytes.

    Raises:
        ValueError: If it is a link, a folder, a pipe or a device.
        OSError: If it does not exist.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    return found.st_size


def read_regular_file(path: Path, limit: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        ValueError: If it is not a regular file, or larger than `limit` bytes.
        OSError: If it does not exist.
    """
    regular_file_size(path)
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # it may have been replaced meanwhile
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path.name} has more than {limit} bytes")
    return content


def parse_strict_json(content: bytes, name: str) -> Any:
    """Parse JSON; error messages call it `name`.

    Raises:
        ValueError: If it is not JSON, or has NaN, infinities, repeated names or too deep nesting.
    """
    try:
        return json.loads(content, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_check_names)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON: {' '.join(str(error).split())[:80]}") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _check_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is repeated")
    return found
