"""Parquet footers with other numbers in them."""

from __future__ import annotations

import struct


def varint(number: int, length: int = 0) -> bytes:
    """Thrift's zigzag; longer than it must be where `length` says so."""
    rest, out = number << 1, bytearray()
    while rest > 127 or len(out) + 1 < length:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*out, rest])


def lie(old: int, new: int, raw: bytes) -> bytes:
    """Another number in a parquet footer, wherever it stands."""
    size = struct.unpack("<I", raw[-8:-4])[0]
    start, before = len(raw) - 8 - size, varint(old)
    return raw[:start] + raw[start:-8].replace(before, varint(new, len(before))[: len(before)]) + raw[-8:]


def small_groups(raw: bytes) -> bytes:
    size = 2 * (300 << 20)
    for number in (size + delta for delta in range(-200, 200)):
        raw = lie(number, 1000, raw)
    return raw
