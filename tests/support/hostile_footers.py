"""Replace numbers in parquet footers."""

from __future__ import annotations

import struct


def varint(number: int, length: int = 0) -> bytes:
    """Encode a number as a zigzag varint of thrift, padded to `length` bytes."""
    rest, out = number << 1, bytearray()
    while rest > 127 or len(out) + 1 < length:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*out, rest])


def replace_number(old: int, new: int, raw: bytes) -> bytes:
    """Replace a number in a parquet footer, wherever it occurs."""
    size = struct.unpack("<I", raw[-8:-4])[0]
    start, before = len(raw) - 8 - size, varint(old)
    return raw[:start] + raw[start:-8].replace(before, varint(new, len(before))[: len(before)]) + raw[-8:]


def shrink_groups(raw: bytes) -> bytes:
    """Declare 1,000 bytes for each size of about 600 MiB."""
    size = 2 * (300 << 20)
    for number in (size + delta for delta in range(-200, 200)):
        raw = replace_number(number, 1000, raw)
    return raw
