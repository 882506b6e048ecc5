"""What an encoded tile says of itself, read by hand before any decoder sees it: sizes, tags, tiles, scans.

Decoders trust these numbers: Pillow keeps the values of 60,000 tags that lie in the same megabyte, GDAL allocates a
block of 2^31 pixels for a picture of 16, OpenJPEG one record per tile and component, libjpeg goes over all pixels once
per scan. All of it fits into files of kilobytes.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from pathlib import Path

from moco_accel.common.errors import in_one_line

MAX_TILE_PIXELS = 1 << 26
"""In each band, 8192 x 8192."""
MAX_TILE_BYTES = 1 << 28
"""Of all bands together, as stored."""
MAX_TILE_BANDS = 1024
MAX_ENCODED_BYTES = 1 << 28
"""Of a tile's file."""

TIFF, BIG_TIFF = (b"II*\0", b"MM\0*"), (b"II+\0", b"MM\0+")
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLES, TIFF_ROWS, TIFF_FORMAT = (
    256,
    257,
    258,
    262,
    277,
    278,
    339,
)
_TILE_WIDTH, _TILE_HEIGHT = 322, 323

_MOST_SCANNED = 1 << 30  # pixels of a JPEG times its scans: 10 are usual
_LONGEST_REASON = 1000
_MOST_TAGS = 4096
_MOST_TAG_BYTES = 1 << 26
_MOST_PARTS = 1 << 16  # blocks of a TIFF or tiles of a JPEG 2000, in each band
_JPEG2000_BYTES = 4  # in which OpenJPEG holds a value, of whatever type
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_VALUE_FORMATS = {3: "H", 4: "I", 16: "Q"}
_SIZ = re.compile(rb"\xff\x4f\xff\x51", re.S)


class DamagedTile(Exception):  # noqa: N818 - it says what the tile is
    """A tile that cannot be used; the message is the reason: one line, lower case."""

    def __init__(self, reason: str) -> None:
        super().__init__(in_one_line(reason)[:_LONGEST_REASON])


def read_file(path: Path) -> bytes:
    """A tile of its own. Raises FileNotFoundError; DamagedTile where it is too large, or no file and without end."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DamagedTile("is no file")
            if status.st_size > MAX_ENCODED_BYTES:
                raise DamagedTile(f"has {status.st_size} bytes; at most {MAX_ENCODED_BYTES} are read")
            return file.read()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = getattr(error, "strerror", None) or error
        raise DamagedTile(f"cannot be read ({reason})") from None


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def check_size(height: int, width: int, bands: int, value_bytes: int = 1) -> None:
    """Raises DamagedTile for nothing at all, or more than is read."""
    if not (height > 0 and width > 0 and bands > 0):
        raise DamagedTile(f"holds no pixels ({bands} x {height} x {width})")
    if height * width > MAX_TILE_PIXELS:
        raise DamagedTile(f"has {height} x {width} pixels; at most {MAX_TILE_PIXELS} are read")
    if height * width * bands * value_bytes > MAX_TILE_BYTES:
        raise DamagedTile(f"has {bands} bands of {height} x {width} pixels; at most {MAX_TILE_BYTES} bytes are read")
    if bands > MAX_TILE_BANDS:
        raise DamagedTile(f"has {bands} bands; at most {MAX_TILE_BANDS} are read")


def check_scans(raw: bytes, height: int, width: int) -> None:
    """Raises DamagedTile for a JPEG that goes over its pixels hundreds of times."""
    scans = raw.count(b"\xff\xda")
    if scans > 1 and scans * height * width > _MOST_SCANNED:
        raise DamagedTile(
            f"has {scans} scans over {height} x {width} pixels; together at most {_MOST_SCANNED} are read"
        )


def check_jpeg2000(raw: bytes) -> None:
    """Raises DamagedTile for what a codestream says of its size: image, tiles, components."""
    for found in _SIZ.finditer(raw):
        header = raw[found.end() + 4 : found.end() + 38]
        if len(header) < 34:
            raise DamagedTile("cannot be decoded (truncated)")
        right, bottom, left, top, tile_width, tile_height, _, _, components = struct.unpack(">8IH", header)
        check_size(bottom - top, right - left, components, _JPEG2000_BYTES)
        _check_parts(bottom, right, tile_height, tile_width, components)


def tiff_tags(raw: bytes) -> dict[int, tuple[int, ...]]:
    """Whole numbers of the first directory, by tag. Raises DamagedTile where tags, image or blocks are too large."""
    order = "<" if raw.startswith(b"I") else ">"
    count_at, entry, head, value_at = ("Q", "HHQ", 16, 12) if raw.startswith(BIG_TIFF) else ("H", "HHI", 8, 8)
    try:
        (start,) = struct.unpack_from(order + ("Q" if head == 16 else "I"), raw, head // 2)
        (count,) = struct.unpack_from(order + count_at, raw, start)
        if count > _MOST_TAGS:
            raise DamagedTile(f"has {count} tags; at most {_MOST_TAGS} are read")
        first, size = start + struct.calcsize(order + count_at), 20 if head == 16 else 12
        entries = [(*struct.unpack_from(order + entry, raw, at), at) for at in range(first, first + count * size, size)]
        taken = sum(_VALUE_BYTES.get(kind, 1) * number for _, kind, number, _ in entries)
        if taken > min(len(raw), _MOST_TAG_BYTES):
            raise DamagedTile(f"has tags of {taken} bytes, in a file of {len(raw)}")
        found = {tag: _numbers(raw, order, kind, number, at + value_at, head // 2) for tag, kind, number, at in entries}
    except (struct.error, OverflowError):
        raise DamagedTile("cannot be decoded (truncated)") from None
    _check_tiff_size(found)
    return found


def _numbers(raw: bytes, order: str, kind: int, count: int, at: int, room: int) -> tuple[int, ...]:
    """The values of an entry whose last field, of `room` bytes, is at `at`: there, or where it points."""
    if kind not in _VALUE_FORMATS or count > 1024:
        return ()
    values = f"{order}{count}{_VALUE_FORMATS[kind]}"
    if struct.calcsize(values) > room:
        (at,) = struct.unpack_from(order + ("Q" if room == 8 else "I"), raw, at)
    return struct.unpack_from(values, raw, at)


def _check_tiff_size(tags: dict[int, tuple[int, ...]]) -> None:
    def first(tag: int, otherwise: int) -> int:
        return (tags.get(tag) or (otherwise,))[0]

    height, width, samples = first(TIFF_HEIGHT, 0), first(TIFF_WIDTH, 0), first(TIFF_SAMPLES, 1)
    check_size(height, width, samples)
    block_height = first(_TILE_HEIGHT, min(first(TIFF_ROWS, height), height))
    block_width = first(_TILE_WIDTH, width)
    check_size(block_height, block_width, samples)
    _check_parts(height, width, block_height, block_width, samples)


def _check_parts(height: int, width: int, part_height: int, part_width: int, bands: int) -> None:
    if not (part_height and part_width):
        raise DamagedTile("cannot be decoded (blocks without pixels)")
    parts = -(-height // part_height) * -(-width // part_width) * bands
    if parts > _MOST_PARTS:
        raise DamagedTile(f"is stored in {parts} blocks; at most {_MOST_PARTS} are read")
