"""Make hostile TIFF: bombs in strips, loops of directories, endless tags."""

# ruff: noqa: E501 - tables of bytes
from __future__ import annotations

import lzma
import struct
import warnings
import zlib
from functools import partial
from typing import Any

import numpy as np
from support.hostile_pictures import Kinds, pillow

SHORT, LONG, ASCII, RATIONAL, UNDEFINED = 3, 4, 2, 5, 7
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, SAMPLES, ROWS, COUNTS, PLANAR = (
    256, 257, 258, 259, 262, 273, 277, 278, 279, 284)  # fmt: skip
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, SUB_IFDS, FORMAT = 322, 323, 324, 325, 330, 339
Tags = dict[int, tuple[int, int, Any]]


def tiff(
    changes: Tags | None = None, data: bytes = bytes(768), next_ifd: int = 0, big: bool = False, side: int = 16
) -> bytes:
    """16 x 16 RGB in a strip, with changed tags: {tag: (type, count, value or offset)}; None is the offset of `data`."""
    tags: dict[int, Any] = {
        WIDTH: (LONG, 1, side), HEIGHT: (LONG, 1, side), BITS: (SHORT, 1, 8), COMPRESSION: (SHORT, 1, 1),
        PHOTOMETRIC: (SHORT, 1, 2), OFFSETS: (LONG, 1, None), SAMPLES: (SHORT, 1, 3), ROWS: (LONG, 1, side),
        COUNTS: (LONG, 1, len(data)), PLANAR: (SHORT, 1, 1),
    }  # fmt: skip
    tags |= changes or {}
    entries = sorted((tag, value) for tag, value in tags.items() if value is not None)
    start = (16 + 8 + 20 * len(entries) + 8) if big else (8 + 2 + 12 * len(entries) + 4)
    form = "<HHQQ" if big else "<HHII"
    body = b"".join(struct.pack(form, t, k, n, start if v is None else v) for t, (k, n, v) in entries)
    if big:
        return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(entries)) + body + struct.pack("<Q", next_ifd) + data
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", next_ifd) + data


def strip_of(compression: int, side: int = 16) -> bytes:
    """A strip that unpacks to a gigabyte instead of a few hundred bytes."""
    if compression in (8, 32_946):
        data = b"".join(
            [(p := zlib.compressobj(9)).compress(bytes(1 << 24))]
            + [p.compress(bytes(1 << 24)) for _ in range(63)]
            + [p.flush()]
        )
    elif compression == 34_925:
        data = lzma.compress(bytes(1 << 28))
    elif compression == 50_000:
        import pyarrow as pa

        data = pa.compress(bytes(1 << 28), "zstd", asbytes=True)
    elif compression == 32_773:
        data = b"\x81\0" * 500_000
    elif compression == 7:
        data = pillow(np.zeros((6000, 6000, 3), np.uint8), "JPEG")
    else:
        data = b"\x80\x00" + bytes([0x55, 0xAA]) * 250_000
    return tiff({COMPRESSION: (SHORT, 1, compression)}, data, side=side)


def many_tags(count: int, size: int) -> bytes:
    """`count` tags whose values share the same `size` bytes."""
    raw = tiff({65_000 - n: (UNDEFINED, size, 8) for n in range(count)})
    return raw + bytes(max(0, size + 8 - len(raw)))


def directories(count: int) -> bytes:
    one = tiff()
    head, size = one[:8], len(one) - 8
    body = one[8 : -768 - 4]
    parts = [body + struct.pack("<I", 8 + (n + 1) * size if n + 1 < count else 0) + bytes(768) for n in range(count)]
    return head + b"".join(parts)


def xml_tag(text: bytes) -> bytes:
    raw = tiff({42_112: (ASCII, len(text) + 1, 0)})
    return tiff({42_112: (ASCII, len(text) + 1, len(raw))}) + text + b"\0"


def sparse(side: int, bands: int, block: int, dtype: str = "uint16", **options: Any) -> bytes:
    """A TIFF that declares pixels and holds none."""
    from rasterio import Affine
    from rasterio.io import MemoryFile

    shape = {"count": bands, "height": side, "width": side, "dtype": dtype, "transform": Affine(10, 0, 0, 0, -10, 0)}
    with warnings.catch_warnings(), MemoryFile() as file:
        warnings.simplefilter("ignore")
        with file.open(
            driver="GTiff", SPARSE_OK="TRUE", tiled=True, blockxsize=block, blockysize=block, **shape, **options
        ):
            pass
        return bytes(file.read())


def by_rasterio(driver: str, dtype: str = "uint16", bands: int = 4, side: int = 24, **options: Any) -> bytes:
    from rasterio import Affine
    from rasterio.io import MemoryFile

    pixels = (np.arange(bands * side * side) % 250).reshape(bands, side, side).astype(dtype)
    shape = {"count": bands, "height": side, "width": side, "dtype": dtype, "transform": Affine(10, 0, 0, 0, -10, 0)}
    with MemoryFile() as file:
        with file.open(driver=driver, **shape, **options) as image:
            image.write(pixels)
        return bytes(file.read())


def tiffs() -> Kinds:
    kinds: Kinds = {}
    for side in (0, 8193, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
        for name, tags in {
            "rgb": {},
            "bands": {SAMPLES: (SHORT, 1, 5)},
            "grey": {SAMPLES: (SHORT, 1, 1), PHOTOMETRIC: (SHORT, 1, 1)},
        }.items():
            kinds[f"tiff {name} of {side}"] = partial(tiff, tags, side=side)
            kinds[f"big tiff {name} of {side}"] = partial(tiff, tags, big=True, side=side)
    for compression in (
        5,
        7,
        8,
        32_773,
        32_946,
        34_925,
        50_000,
        50_001,
        34_887,
        50_002,
        2,
        3,
        4,
        6,
        34_676,
        34_712,
        65_000,
        0,
    ):
        kinds[f"tiff strip bomb {compression}"] = partial(strip_of, compression)
    kinds["tiff strip bomb 8 of bands"] = lambda: tiff(
        {SAMPLES: (SHORT, 1, 5), COMPRESSION: (SHORT, 1, 8)}, zlib.compress(bytes(1 << 28))
    )
    for count, size in ((5000, 4), (60_000, 4), (60_000, 1 << 20), (200, 50 << 20), (2000, 1 << 20)):
        kinds[f"tiff of {count} tags of {size}"] = partial(many_tags, count, size)
    for tag in (BITS, OFFSETS, COUNTS, SAMPLES, FORMAT, 270, 320, 34_675, 34_735, 42_113, 700, SUB_IFDS):
        for count in (0, (1 << 32) - 1, 1 << 28):
            for kind in (SHORT, LONG, ASCII):
                kinds[f"tiff tag {tag} kind {kind} count {count}"] = partial(tiff, {tag: (kind, count, 8)})
    for count in (2, 5000, 60_000):
        kinds[f"tiff of {count} directories"] = partial(directories, count)
    kinds["tiff directory loop"] = partial(tiff, next_ifd=8)
    kinds["tiff sub directory loop"] = partial(tiff, {SUB_IFDS: (LONG, 1, 8)})
    kinds["tiff directory outside"] = lambda: b"II*\0" + struct.pack("<I", 1 << 31)
    kinds["tiff exif loop"] = partial(tiff, {34_665: (LONG, 1, 8)})
    for block in (16, 1 << 16, 1 << 20, (1 << 31) - 16, 1 << 31):
        for name, more in {"rgb": {}, "bands": {SAMPLES: (SHORT, 1, 5)}}.items():
            place = {
                TILE_WIDTH: (LONG, 1, block),
                TILE_HEIGHT: (LONG, 1, block),
                TILE_OFFSETS: (LONG, 1, None),
                TILE_COUNTS: (LONG, 1, 768),
            }
            kinds[f"tiff {name} in tiles of {block}"] = partial(
                tiff, {**more, **place, OFFSETS: None, COUNTS: None, ROWS: None}
            )
            kinds[f"tiff {name} in rows of {block}"] = partial(tiff, {**more, ROWS: (LONG, 1, block)})
    for name, text in {
        "vrt": b'<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand><SimpleSource><SourceFilename>/etc/passwd</SourceFilename>',
        "entities": b'<!DOCTYPE a [<!ENTITY b "' + b"x" * 999 + b'"><!ENTITY c "' + b"&b;" * 999 + b'">]><GDALMetadata>' + b"&c;" * 999,
        "deep": b"<a>" * 100_000, "wide": b'<GDALMetadata>' + b'<Item name="x" sample="9999999" role="scale">2</Item>' * 20_000 + b"</GDALMetadata>",
        "mask": b'<GDALMetadata><Item name="INTERNAL_MASK_FLAGS_1">/vsicurl/http://127.0.0.1:9/x</Item></GDALMetadata>',
    }.items():  # fmt: skip
        kinds[f"tiff xml {name}"] = partial(xml_tag, text)
    for side, bands, block, dtype in (
        (8192, 1, 16, "uint8"),
        (8192, 4, 16, "uint16"),
        (8192, 2, 8192, "float32"),
        (4096, 16, 256, "float32"),
        (1024, 255, 16, "uint8"),
        (8704, 1, 512, "uint16"),
        (256, 4000, 256, "uint8"),
        (16, 65_000, 16, "uint8"),
    ):
        kinds[f"sparse tiff {bands} of {side} {dtype} in {block}"] = partial(sparse, side, bands, block, dtype)
    kinds["sparse tiff of bands"] = partial(sparse, 4096, 8, 16, "uint8", interleave="band")
    return kinds
