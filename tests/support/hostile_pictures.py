"""Make hostile JPEG, PNG and JPEG 2000: bombs, false sizes, endless scans."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Kinds = dict[str, Callable[[], bytes]]
SMOOTH = (np.add.outer(np.arange(40) * 3, np.arange(30) * 2)[:, :, None] + [0, 20, 40]).astype(np.uint8)
SIZES = (0, 1, 65_535, 65_536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def pillow(pixels: Any = SMOOTH, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int = 8, colour: int = 2, more: bytes = b"", data: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def flat_png(side: int, bits: int = 8, interlaced: bool = False) -> bytes:
    """A valid black PNG, a thousandth as large as its pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side * 3 * bits // 8)
    rows = [packer.compress(row) for _ in range(side)] if not interlaced else [packer.compress(bytes(side * side * 4))]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, 2, 0, 0, interlaced))
    body = chunk(b"IDAT", b"".join(rows) + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def zeros(mib: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join([packer.compress(bytes(1 << 20)) for _ in range(mib)] + [packer.flush()])


def text_bomb(kind: bytes, bits: int, count: int = 1) -> bytes:
    prefix = {b"zTXt": b"k\0\0", b"iCCP": b"k\0\0", b"iTXt": b"k\0\1\0\0\0"}[kind]
    rows = b"".join(b"\0" + bytes(16 * 3 * bits // 8) for _ in range(16))
    return png(16, 16, bits, 2, chunk(kind, prefix + zeros(100)) * count, rows)


def many_chunks(kind: bytes, count: int, size: int) -> bytes:
    return png(16, 16, 8, 2, chunk(kind, b"k\0" + bytes(size)) * count, b"".join(b"\0" + bytes(48) for _ in range(16)))


def grey_png_of(bits: int, colour: int) -> bytes:
    return png(16, 16, bits, colour, b"", bytes(16 * 200))


def described_png() -> bytes:
    info = PngInfo()
    info.add_text("k", "v" * 900_000, zip=True)
    return pillow(pnginfo=info)


def jpeg_of_size(height: int, width: int, progressive: bool = False) -> bytes:
    raw = pillow(SMOOTH, "JPEG", progressive=progressive)
    return re.sub(
        rb"(\xff[\xc0\xc2]\x00\x11\x08)....",
        lambda m: m[1] + struct.pack(">HH", height, width),
        raw,
        count=1,
        flags=re.S,
    )


def many_scans(count: int, side: int) -> bytes:
    """A progressive JPEG with `count` more passes over the same `side` x `side` pixels."""
    raw = pillow(SMOOTH, "JPEG", progressive=True)
    raw = re.sub(
        rb"(\xff\xc2\x00\x11\x08)....", lambda m: m[1] + struct.pack(">HH", side, side), raw, count=1, flags=re.S
    )
    last = raw.rindex(b"\xff\xda")
    tables = raw.rindex(b"\xff\xc4", 0, last)
    return raw[:-2] + raw[tables:-2] * count + b"\xff\xd9"


def cmyk_jpeg(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("CMYK", (side, side)).save(file, "JPEG", progressive=True)
    return file.getvalue()


def segments(marker: int, count: int, size: int = 65_533) -> bytes:
    """A JPEG behind `count` segments of EXIF, ICC or another kind."""
    raw = pillow(SMOOTH, "JPEG")
    body = {0xE1: b"Exif\0\0", 0xE2: b"ICC_PROFILE\0\1\1"}.get(marker, b"")
    body += bytes(size - len(body))
    return raw[:2] + (bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body) * count + raw[2:]


def restarts(interval: int) -> bytes:
    raw = pillow(SMOOTH, "JPEG")
    at = raw.index(b"\xff\xda")
    return raw[:at] + b"\xff\xdd\x00\x04" + struct.pack(">H", interval) + raw[at:-2] + b"\xff\xd0" * 9999 + b"\xff\xd9"


def frame(marker: int) -> bytes:
    """The same bytes declared as another JPEG process: arithmetic, lossless, hierarchical."""
    return pillow(SMOOTH, "JPEG").replace(b"\xff\xc0", bytes([0xFF, marker]), 1)


def jpeg2000(
    size: tuple[int, int], tile: tuple[int, int], components: int, origin: int = 0, boxed: bool = True
) -> bytes:
    """A header without pixels: Rsiz, Xsiz, Ysiz, XOsiz, YOsiz, XTsiz, YTsiz, XTOsiz, YTOsiz, Csiz."""
    siz = struct.pack(">HIIIIIIIIH", 0, size[1], size[0], origin, origin, tile[1], tile[0], 0, 0, components)
    siz += bytes([7, 1, 1]) * components
    cod = bytes([0, 0, 0, 1, 0, 5, 4, 4, 0, 1])
    qcd = bytes([0x40]) + bytes([0x40] * 16)
    codestream = b"\xff\x4f\xff\x51" + struct.pack(">H", len(siz) + 2) + siz
    codestream += (
        b"\xff\x52" + struct.pack(">H", len(cod) + 2) + cod + b"\xff\x5c" + struct.pack(">H", len(qcd) + 2) + qcd
    )
    codestream += b"\xff\x90\x00\x0a\x00\x00" + struct.pack(">I", 14) + b"\x00\x01\xff\x93\xff\xd9"
    if not boxed:
        return codestream
    ihdr = struct.pack(">IIHBBBB", *(min(n, (1 << 32) - 1) for n in size), components, 7, 7, 0, 0)
    colr = box(b"colr", b"\1\0\0" + struct.pack(">I", 16))
    return (
        b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", box(b"ihdr", ihdr) + colr)
        + box(b"jp2c", codestream)
    )  # fmt: skip


def box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data) + 8) + kind + data


def pictures() -> Kinds:
    """Return functions that make each file, by name."""
    kinds: Kinds = {}
    for height in SIZES:
        for width in (16, 1 << 31, height):
            kinds[f"png header {height} x {width}"] = partial(png, width % (1 << 32), height)
    for height in (0, 1, 8192, 65_500, 65_535):
        for width in (16, 65_535):
            for way in (False, True):
                kinds[f"jpeg header {height} x {width}{' progressive' * way}"] = partial(
                    jpeg_of_size, height, width, way
                )
    for kind in (b"zTXt", b"iTXt", b"iCCP"):
        for bits in (8, 16):
            kinds[f"png {bits} bit {kind.decode()} bomb"] = partial(text_bomb, kind, bits)
        kinds[f"png of 500 {kind.decode()} bombs"] = partial(text_bomb, kind, 8, 500)
    for kind in (
        b"tEXt",
        b"sPLT",
        b"eXIf",
        b"fcTL",
        b"fdAT",
        b"acTL",
        b"tRNS",
        b"PLTE",
        b"gAMA",
        b"cHRM",
        b"xxXx",
        b"XXXX",
    ):
        kinds[f"png of 20,000 {kind.decode()}"] = partial(many_chunks, kind, 20_000, 6)
        kinds[f"png {kind.decode()} of 20 MiB"] = partial(many_chunks, kind, 1, 20 << 20)
    for bits in (1, 2, 4, 8, 16, 3, 0, 255):
        for colour in (0, 2, 3, 4, 6, 1, 9):
            kinds[f"png {bits} bits colour {colour}"] = partial(grey_png_of, bits, colour)
    kinds["png with text"] = described_png
    for side in (8192, 8193, 9000):
        kinds[f"flat png of {side}"] = partial(flat_png, side)
    kinds["flat png of 8192 interlaced"] = partial(flat_png, 8192, 8, True)
    kinds["rgba png of 8192"] = lambda: png(8192, 8192, 8, 6, b"", bytes(8192 * (1 + 4 * 8192)))
    kinds["palette png of 8192"] = lambda: png(8192, 8192, 8, 3, chunk(b"PLTE", bytes(768)), bytes(8192 * 8193))
    kinds["cmyk jpeg of 8192"] = partial(cmyk_jpeg, 8192)
    kinds["flat png of 4096 deep"] = partial(flat_png, 4096, 16)
    kinds["png of 81 megapixels"] = partial(pillow, np.zeros((9000, 9000), np.uint8), optimize=True)
    kinds["png of a bit's 8192"] = lambda: png(8192, 8192, 1, 0, b"", bytes(1025 * 8192))
    for count, side in ((60, 40), (1000, 40), (20_000, 40), (30, 8192), (1000, 1024), (1000, 8192), (20_000, 8192)):
        kinds[f"jpeg of {count} scans over {side}"] = partial(many_scans, count, side)
    for marker in (0xE1, 0xE2, 0xED, 0xFE, 0xC4, 0xDB, 0xDD):
        kinds[f"jpeg of 1,000 segments {marker:x}"] = partial(segments, marker, 1000)
    for interval in (0, 1, 65_535):
        kinds[f"jpeg restarts {interval}"] = partial(restarts, interval)
    for marker in (0xC1, 0xC3, 0xC5, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCF, 0xD8, 0xD9):
        kinds[f"jpeg frame {marker:x}"] = partial(frame, marker)
    for size in ((16, 16), (8192, 8192), (1 << 31, 1 << 31), ((1 << 32) - 1, 16), (0, 0)):
        for tile in ((16, 16), (1, 1), size, (1 << 31, 1 << 31)):
            for components in (1, 3, 16_384):
                name = f"jp2 {size[0]} x {size[1]} tiles {tile[0]} x {tile[1]} components {components}"
                kinds[name] = partial(jpeg2000, size, tile, components)
    kinds["bare jp2 of many tiles"] = partial(jpeg2000, (4080, 4080), (16, 16), 16_384, 0, False)
    kinds["jp2 origin"] = partial(jpeg2000, ((1 << 31) + 9, (1 << 31) + 9), (1 << 31, 1 << 31), 3, 1 << 31)
    return kinds
