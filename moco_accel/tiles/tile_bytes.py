"""The encoded bytes of a tile, wherever `datasets` put them in a column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from moco_accel.images.headers import DamagedTile, read_file


def first_bytes(value: Any, what: str) -> bytes:
    """The encoded bytes in an arrow scalar, wherever `datasets` put them. Raises DamagedTile."""
    raw = value if value is None or isinstance(value, bytes) else _as_python(value, what)
    if isinstance(raw, dict):
        encoded, path = raw.get("bytes"), raw.get("path")
        raw = encoded if encoded is not None or not isinstance(path, str) else _read_beside(path, what)
    if raw is None:
        raise DamagedTile(f"{what}is missing")
    if not isinstance(raw, bytes):
        raise DamagedTile(f"{what}is {type(raw).__name__}, not the bytes of an image")
    return raw


def _as_python(value: Any, what: str) -> Any:
    try:
        return value.as_py()
    except (pa.ArrowException, ValueError, OverflowError) as error:  # UnicodeDecodeError among them
        raise DamagedTile(f"{what}cannot be read ({' '.join(str(error).split())})") from None


def _read_beside(path: str, what: str) -> bytes:
    """The file that an Image column names where it holds no bytes."""
    shown = path if path.isprintable() else ascii(path)
    try:
        return read_file(Path(path))
    except FileNotFoundError as error:
        raise DamagedTile(f"{what}cannot be read ({error.strerror}: {shown})") from None
    except DamagedTile as reason:
        raise DamagedTile(f"{what}{reason}: {shown}") from None
