"""Files that are whole at any time, and files that others may have made: never waited for, never read past a limit."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

_NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Written aside, synced, renamed: a reader, a kill or a power cut finds the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)


def drop_rows_from(path: Path, step: int) -> None:
    """Rows of JSON with a `step` of this or later: of what a killed run did past its checkpoint, and will do again."""
    rows = path.read_text().splitlines() if path.is_file() and step else []
    whole = [row for row in rows if row.endswith("}") and json.loads(row)["step"] < step]
    write_atomically(path, "".join(row + "\n" for row in whole))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC_OF_FOLDERS:  # some file systems cannot, and need not
            raise
    finally:
        os.close(handle)


def ordinary_size(path: Path) -> int:
    """Bytes of an ordinary file. Raises ValueError for a link, a folder, a pipe or a device, OSError where none is."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is no ordinary file")
    return found.st_size


def read_ordinary(path: Path, limit: int) -> bytes:
    """All of an ordinary file of at most `limit` bytes. Raises as `ordinary_size`, and ValueError above the limit."""
    ordinary_size(path)
    # it may have been swapped meanwhile
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError(f"{path.name} is no ordinary file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path.name} has more than {limit} bytes")
    return content


def strict_json(content: bytes, name: str) -> Any:
    """Plain data from JSON without NaN, infinities or names that come twice. Raises ValueError."""
    try:
        return json.loads(content, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not what JSON may be here: {' '.join(str(error).split())[:80]}") from None


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)  # type: ignore[return-value,func-returns-value]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found
