"""Make hostile .npy: false shapes, types and headers, pickles; and truncated or corrupted files of every format."""

# ruff: noqa: E501 - tables of bytes
from __future__ import annotations

import random
import struct
from functools import partial
from typing import Any

from support.hostile_pictures import SMOOTH, Kinds, pillow
from support.hostile_rasters import by_rasterio


def npy(
    header: str | bytes, data: bytes = bytes(64), version: tuple[int, int] = (1, 0), length: int | None = None
) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", size) + text + data


def npy_of(descr: str, shape: str, order: str = "False") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n")


def arrays() -> Kinds:
    kinds: Kinds = {}
    shapes = ("(-1, 8, 8)", "(-1, -8, 8)", "(3, -8, -8)", "(2**31, 8)", "(3, 4294967296, 4294967296)", "(1, 10000000000, 8)",
              "()", "(8,)", "(1, 1, 8, 8)", "(True, 8, 8)", "(3.0, 8, 8)", "('3', 8, 8)", "None", "[3, 8, 8]", "(3, 8, 8, 0)",
              "(0, 8, 8)", "(3, 8, 0)", "(3, 8192, 8193)", "(300, 4096, 4096)", "(1, 1, 67108864)")  # fmt: skip
    for shape in shapes:
        kinds[f"npy shape {shape}"] = partial(npy_of, "'<u2'", shape)
    for descr in ("'|O'", "'<f8'", "'<c16'", "'<U4'", "'|V4'", "'<M8[s]'", "[('a', '<u2')]", "('<u2', (3,))", "'|b1'", "'<f2'",
                  "'|S999999999'", "'nonsense'", "None", "3", "[('a', '|O')]", "'<u2,<u2'", "'>u2'", "[('a', '<u2', (9999, 9999, 99))]"):  # fmt: skip
        kinds[f"npy dtype {descr}"] = partial(npy_of, descr, "(3, 8, 8)")
    kinds["npy fortran of text"] = partial(npy_of, "'<u2'", "(3, 8, 8)", "'yes'")
    kinds["npy pickle"] = lambda: npy_of("'|O'", "(3, 8, 8)") + b"cos\nsystem\n(S'touch hostile_was_run'\ntR."
    kinds["bare pickle"] = lambda: b"\x80\x04cos\nsystem\n(S'touch hostile_was_run'\ntR."
    for name, text in {
        "minus": "-" * 9000 + "1", "brackets": "[" * 9000, "braces": "{1:" * 3000, "long": " " * 60_000, "code": "__import__('os')",
        "empty": "", "bytes": b"\xff\xfe\0\0", "power": "{'descr': '<u2', 'fortran_order': False, 'shape': (9**9**9, 8)}",
        "extra": "{'descr': '<u2', 'fortran_order': False, 'shape': (8, 8), 'x': 1}", "calls": "f" + "(" * 5000,
    }.items():  # fmt: skip
        for version in ((1, 0), (2, 0)):
            kinds[f"npy header {name} {version[0]}"] = partial(npy, text, bytes(64), version)
    for version in ((3, 0), (0, 0), (255, 255)):
        kinds[f"npy version {version[0]}"] = partial(npy, "{}", bytes(64), version)
    kinds["npy header of 4 GiB"] = partial(npy, "{}", bytes(64), (2, 0), (1 << 32) - 1)
    return kinds


WHOLE: Kinds = {
    "jpeg": partial(pillow, SMOOTH, "JPEG"), "progressive jpeg": partial(pillow, SMOOTH, "JPEG", progressive=True),
    "png": pillow, "tiff": partial(pillow, SMOOTH, "TIFF"), "lzw tiff": partial(pillow, SMOOTH, "TIFF", compression="tiff_lzw"),
    "jpeg tiff": partial(pillow, SMOOTH, "TIFF", compression="jpeg"), "deep png": partial(by_rasterio, "PNG", bands=3),
    "deflate tiff": partial(by_rasterio, "GTiff", compress="deflate"), "zstd tiff": partial(by_rasterio, "GTiff", compress="zstd"),
    "tiled tiff": partial(by_rasterio, "GTiff", side=64, tiled=True, blockxsize=16, blockysize=16),
    "big tiff": partial(by_rasterio, "GTiff", BIGTIFF="YES"), "lerc tiff": partial(by_rasterio, "GTiff", compress="lerc"),
    "jpeg 2000": partial(by_rasterio, "JP2OpenJPEG", bands=3), "npy": lambda: npy_of("'<u2'", "(3, 8, 8)") + bytes(400),
}  # fmt: skip


def corrupted() -> Kinds:
    """Every format truncated at 20 places, and with changed bytes 20 times."""
    kinds: Kinds = {}
    for name, make in WHOLE.items():
        for part in range(20):
            kinds[f"{name} truncated at {part}/20"] = partial(truncate, make, part)
            kinds[f"{name} corrupted {part}"] = partial(corrupt, make, part)
    for seed in range(40):
        kinds[f"noise {seed}"] = partial(noise, seed)
    return kinds


def truncate(make: Any, part: int) -> bytes:
    raw = make()
    return bytes(raw[: len(raw) * part // 20])


def corrupt(make: Any, seed: int) -> bytes:
    raw, draw = bytearray(make()), random.Random(seed)
    for _ in range(draw.choice((1, 4, 30))):
        raw[draw.randrange(8, min(len(raw), draw.choice((60, 300, len(raw)))))] = draw.randrange(256)
    return bytes(raw)


def noise(seed: int) -> bytes:
    heads = (
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0",
        b"MM\0*",
        b"II+\0\x08\0\0\0",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"\xffO\xffQ",
        b"\x93NUMPY\x01\0",
    )
    return heads[seed % len(heads)] + random.Random(seed).randbytes(5000)
