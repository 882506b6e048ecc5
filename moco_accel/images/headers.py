"""Check sizes, tags, tiles and scans in an encoded tile's header before a decoder reads it.

Decoders trust these numbers, and a file of kilobytes can claim anything. Pillow keeps the values of 60,000 tags that
share one megabyte, GDAL allocates a block of 2^31 pixels for a picture of 16, OpenJPEG one record per tile and
component, and libjpeg passes over all pixels once per scan.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from moco_accel.common.errors import to_single_line
from moco_accel.images.kinds import BIG_TIFF, HEAD_BYTES, image_kind

Raw = bytes | memoryview

STORED_TYPES = ("uint8", "uint16", "int16", "float32")
CAST_TYPES = ("bool", "int8", "uint32", "int32", "uint64", "int64", "float16", "float64")  # cast to a stored type
READABLE_TYPES = (*STORED_TYPES, *CAST_TYPES)
MAX_TILE_PIXELS = 1 << 26  # in each band: 8192 x 8192
MAX_TILE_BYTES = 1 << 28  # in all bands together, as stored
_MAX_TILE_BANDS = 1024
MAX_ENCODED_BYTES = 1 << 28  # in a tile's file

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _ROWS = 256, 257, 258, 262, 277, 278
_KIND, _TILE_WIDTH, _TILE_HEIGHT, _INK_SET, _SAMPLE_FORMAT = 254, 322, 323, 332, 339
_IS_REDUCED, _IS_MASK = 1, 4  # flags of a directory's kind
_MAX_DIRECTORIES = 1024
_COLOUR_TABLE, _CMYK, _OTHER_INKS = 3, 5, 2
_COLOURS = {_CMYK: "CMYK", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab"}
_CONVERTED = (_CMYK, 8)  # to RGB, by GDAL
# (samples, photometric) of white-is-zero and black-is-zero grey, a colour table, RGB
_PLAIN_TIFFS = {((1,), (0,)), ((1,), (1,)), ((1,), (3,)), ((3,), (2,))}
_PARSED_VALUES = 1024  # of a tag

_MAX_SCANNED_PIXELS = 1 << 30  # of a JPEG, counted once per scan: 10 scans are usual
_MAX_REASON_CHARACTERS = 1000
_MAX_TAGS = 4096
_MAX_TAG_BYTES = 1 << 26
_MAX_BLOCKS = 1 << 16  # of a TIFF, or tiles of a JPEG 2000, in each band
_JPEG2000_BYTES = 4  # per value in OpenJPEG, whatever the type
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_VALUE_FORMATS = {3: "H", 4: "I", 16: "Q"}
_SIZ = re.compile(rb"\xff\x4f\xff\x51", re.S)


class DamagedTile(Exception):  # noqa: N818 - it names the tile's state
    """A tile that cannot be used; the message is the reason, in one line and lower case."""

    def __init__(self, reason: str) -> None:
        super().__init__(to_single_line(reason)[:_MAX_REASON_CHARACTERS])


def read_file(path: Path) -> bytes:
    """Return the bytes of a tile's own file.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedTile: If it is too large, cannot be read, or is not a regular file.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
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


def check_size(height: int, width: int, bands: int, value_bytes: int = 1) -> None:
    """Check the size of a decoded tile.

    Raises:
        DamagedTile: If it has no pixels, or more pixels, bytes or bands than are read.
    """
    if not (height > 0 and width > 0 and bands > 0):
        raise DamagedTile(f"holds no pixels ({bands} x {height} x {width})")
    if height * width > MAX_TILE_PIXELS:
        raise DamagedTile(f"has {height} x {width} pixels; at most {MAX_TILE_PIXELS} are read")
    if height * width * bands * value_bytes > MAX_TILE_BYTES:
        raise DamagedTile(f"has {bands} bands of {height} x {width} pixels; at most {MAX_TILE_BYTES} bytes are read")
    if bands > _MAX_TILE_BANDS:
        raise DamagedTile(f"has {bands} bands; at most {_MAX_TILE_BANDS} are read")


def check_scans(raw: bytes, height: int, width: int) -> None:
    """Raise DamagedTile for a JPEG that passes over its pixels hundreds of times."""
    scans = raw.count(b"\xff\xda")
    if scans > 1 and scans * height * width > _MAX_SCANNED_PIXELS:
        raise DamagedTile(
            f"has {scans} scans over {height} x {width} pixels; together at most {_MAX_SCANNED_PIXELS} are read"
        )


def check_jpeg2000(raw: bytes) -> None:
    """Raise DamagedTile if a codestream declares an image, tiles or components that are too large."""
    for found in _SIZ.finditer(raw):
        header = raw[found.end() + 4 : found.end() + 38]
        if len(header) < 34:
            raise DamagedTile("cannot be decoded (truncated)")
        right, bottom, left, top, tile_width, tile_height, _, _, components = struct.unpack(">8IH", header)
        check_size(bottom - top, right - left, components, _JPEG2000_BYTES)
        _check_blocks(bottom, right, tile_height, tile_width, components)


def tiff_tags(raw: Raw) -> dict[int, tuple[int, ...]]:
    """Return the integer values of the first directory, by tag.

    Raises:
        DamagedTile: If the tags, the image or its blocks are too large, or its colours are none that are read.
    """
    try:
        tags, _ = _read_directory(raw, _first_directory(raw))
    except (struct.error, OverflowError):
        raise DamagedTile("cannot be decoded (truncated)") from None
    _check_tiff_size(tags)
    _check_colours(tags)
    return tags


def tiff_pages(raw: Raw) -> tuple[int, bool]:
    """Return the number of images in a TIFF that are no overviews or masks, and whether it holds a mask of the first.

    Directories behind a damaged one are not counted: only the first image is read.
    """
    seen: set[int] = set()
    pages: list[tuple[int, ...]] = []  # (height, width)
    has_mask = False
    with suppress(struct.error, OverflowError, DamagedTile):
        start = _first_directory(raw)
        while start and start not in seen and len(seen) < _MAX_DIRECTORIES:
            seen.add(start)
            tags, start = _read_directory(raw, start)
            kind, size = (tags.get(_KIND) or (0,))[0], (*tags.get(_HEIGHT, ()), *tags.get(_WIDTH, ()))
            has_mask |= kind & (_IS_REDUCED | _IS_MASK) == _IS_MASK
            if not kind & (_IS_REDUCED | _IS_MASK):
                pages.append(size)
    # an overview without its flag is smaller
    return max(1, sum(size >= pages[0] for size in pages)), has_mask


def check_colours(path: Path) -> None:
    """Raise DamagedTile if a TIFF file stores colours that are neither read nor converted; other files may."""
    with (
        suppress(OSError, ValueError, struct.error, OverflowError),  # whatever opens the file says so
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as raw,
    ):
        if image_kind(bytes(raw[:HEAD_BYTES])) == "tiff":
            _check_colours(_read_directory(raw, _first_directory(raw))[0])


def _first_directory(raw: Raw) -> int:
    """Return where the first directory begins."""
    is_big = bytes(raw[:4]) in BIG_TIFF
    return int(struct.unpack_from(_order(raw) + ("Q" if is_big else "I"), raw, 8 if is_big else 4)[0])


def _order(raw: Raw) -> str:
    return "<" if raw[:1] == b"I" else ">"


def _read_directory(raw: Raw, start: int) -> tuple[dict[int, tuple[int, ...]], int]:
    """Return a directory's integer values by tag, and where the next one begins; 0 for none."""
    order, is_big = _order(raw), bytes(raw[:4]) in BIG_TIFF
    count_at, entry, pointer, size = ("Q", "HHQ", "Q", 20) if is_big else ("H", "HHI", "I", 12)
    (count,) = struct.unpack_from(order + count_at, raw, start)
    if count > _MAX_TAGS:
        raise DamagedTile(f"has {count} tags; at most {_MAX_TAGS} are read")
    first = start + struct.calcsize(order + count_at)
    end, room = first + count * size, struct.calcsize(order + pointer)
    entries = [(*struct.unpack_from(order + entry, raw, at), at) for at in range(first, end, size)]
    taken = sum(_VALUE_BYTES.get(kind, 1) * number for _, kind, number, _ in entries)
    if taken > min(len(raw), _MAX_TAG_BYTES):
        raise DamagedTile(f"has tags of {taken} bytes, in a file of {len(raw)}")
    tags = {tag: _parse_values(raw, order, kind, n, at + size - room, room) for tag, kind, n, at in entries}
    following = struct.unpack_from(order + pointer, raw, end)[0] if end + room <= len(raw) else 0
    return tags, int(following)


def _check_colours(tags: Mapping[int, tuple[int, ...]]) -> None:
    """Raise DamagedTile for inks and Lab that cannot be turned into RGB: as they are, they would pass for bands."""
    photometric = (tags.get(_PHOTOMETRIC) or (1,))[0]
    if photometric not in _COLOURS or (photometric == _CMYK and tags.get(_INK_SET) == (_OTHER_INKS,)):
        return
    is_8_bit = set(tags.get(_BITS, (1,))) == {8} and set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
    if not (is_8_bit and photometric in _CONVERTED):
        bits = max(tags.get(_BITS) or (1,))
        raise DamagedTile(
            f"stores {_COLOURS[photometric]} of {bits} bits; CMYK and CIE Lab of 8 bits are read, and RGB of any type"
        )


def is_plain_tiff(tags: Mapping[int, tuple[int, ...]]) -> bool:
    """Check whether Pillow reads a TIFF without loss: unsigned 8-bit grey, RGB, or a colour table."""
    is_8_bit = set(tags.get(_BITS, (1,))) == {8} and set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
    return is_8_bit and (tags.get(_SAMPLES, (1,)), tags.get(_PHOTOMETRIC, ())) in _PLAIN_TIFFS


def plain_tiff_bands(tags: Mapping[int, tuple[int, ...]]) -> int:
    """Return the number of bands that a plain TIFF decodes to: a colour table becomes RGB."""
    return 3 if tags[_PHOTOMETRIC] == (_COLOUR_TABLE,) else tags.get(_SAMPLES, (1,))[0]


def _parse_values(raw: Raw, order: str, kind: int, count: int, at: int, room: int) -> tuple[int, ...]:
    """Return an entry's values: in its last field, of `room` bytes at `at`, or where that field points."""
    if kind not in _VALUE_FORMATS or count > _PARSED_VALUES:
        return ()
    values = f"{order}{count}{_VALUE_FORMATS[kind]}"
    if struct.calcsize(values) > room:
        (at,) = struct.unpack_from(order + ("Q" if room == 8 else "I"), raw, at)
    return struct.unpack_from(values, raw, at)


def _check_tiff_size(tags: Mapping[int, tuple[int, ...]]) -> None:
    def first(tag: int, default: int) -> int:
        return (tags.get(tag) or (default,))[0]

    height, width, samples = first(_HEIGHT, 0), first(_WIDTH, 0), first(_SAMPLES, 1)
    check_size(height, width, samples)
    block_height = first(_TILE_HEIGHT, min(first(_ROWS, height), height))
    block_width = first(_TILE_WIDTH, width)
    check_size(block_height, block_width, samples)
    _check_blocks(height, width, block_height, block_width, samples)


def _check_blocks(height: int, width: int, block_height: int, block_width: int, bands: int) -> None:
    if not (block_height and block_width):
        raise DamagedTile("cannot be decoded (blocks without pixels)")
    blocks = -(-height // block_height) * -(-width // block_width) * bands
    if blocks > _MAX_BLOCKS:
        raise DamagedTile(f"is stored in {blocks} blocks; at most {_MAX_BLOCKS} are read")
