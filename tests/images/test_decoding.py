"""Decoding: pixels equal Pillow's, formats are read as stored, sizes are checked first, hostile bytes are refused."""

from __future__ import annotations

import io
import random
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco_accel.common.errors import UserError
from moco_accel.images.decoding import DamagedTile, decode_raster
from moco_accel.images.headers import MAX_TILE_PIXELS

RANDOM = np.random.default_rng(0)
SMOOTH = (np.add.outer(np.arange(40) * 3, np.arange(30) * 2)[:, :, None] + [0, 20, 40]).astype(np.uint8)


def by_pillow(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def by_rasterio(pixels: np.ndarray, driver: str, **options: Any) -> bytes:
    """`pixels` [bands, height, width]."""
    from rasterio import Affine
    from rasterio.io import MemoryFile

    bands, height, width = pixels.shape
    shape = {"count": bands, "height": height, "width": width, "dtype": pixels.dtype.name}
    with MemoryFile() as file:
        # rasterio warns without a transform
        with file.open(driver=driver, transform=Affine(10, 0, 0, 0, -10, 0), **shape, **options) as image:
            image.write(pixels)
        return bytes(file.read())


def as_npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def noise(dtype: str, bands: int, height: int = 24, width: int = 20) -> np.ndarray:
    if dtype == "float32":
        return RANDOM.normal(size=(bands, height, width)).astype(dtype)
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, limits.max, (bands, height, width), dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"quality": 90}), ("JPEG", {"progressive": True, "subsampling": 0}), ("PNG", {}), ("TIFF", {}),
     ("TIFF", {"compression": "tiff_lzw"})],
)  # fmt: skip
@pytest.mark.parametrize("grey", [False, True])
def test_pictures_equal_pillow(kind: str, options: dict[str, Any], grey: bool) -> None:
    raw = by_pillow(SMOOTH[:, :, 0] if grey else SMOOTH, kind, **options)
    with Image.open(io.BytesIO(raw)) as image:
        expected = np.atleast_3d(np.array(image)).transpose(2, 0, 1)
    tile = decode_raster(raw)
    assert tile.dtype == torch.uint8
    assert tile.shape == (1 if grey else 3, 40, 30)
    assert np.array_equal(tile.numpy(), expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_tiffs_are_read_as_stored(dtype: str, bands: int, interleave: str) -> None:
    pixels = noise(dtype, bands)
    tile = decode_raster(by_rasterio(pixels, "GTiff", interleave=interleave, compress="deflate"))
    assert str(tile.dtype) == f"torch.{dtype}"
    assert np.array_equal(tile.numpy(), pixels)


def test_bigtiff_and_the_other_byte_order() -> None:
    pixels = noise("uint16", 3)
    assert np.array_equal(decode_raster(by_rasterio(pixels, "GTiff", BIGTIFF="YES")).numpy(), pixels)
    assert np.array_equal(decode_raster(by_rasterio(pixels, "GTiff", ENDIANNESS="BIG")).numpy(), pixels)
    small = noise("uint8", 3)
    assert np.array_equal(decode_raster(by_rasterio(small, "GTiff", ENDIANNESS="BIG")).numpy(), small)


@pytest.mark.parametrize(("dtype", "bands"), [("uint8", 3), ("uint16", 1), ("uint16", 4), ("int16", 2)])
def test_jpeg_2000_is_read_as_stored(dtype: str, bands: int) -> None:
    pixels = noise(dtype, bands)
    raw = by_rasterio(pixels, "JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    assert np.array_equal(decode_raster(raw).numpy(), pixels)


def test_sixteen_bit_png_keeps_its_bits() -> None:
    """Pillow itself would reduce colour to 8 bits."""
    for bands in (1, 3):
        pixels = noise("uint16", bands)
        assert np.array_equal(decode_raster(by_rasterio(pixels, "PNG")).numpy(), pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_npy_bands_are_the_shorter_outer_axis(dtype: str) -> None:
    pixels = noise(dtype, 13)
    for array in (
        pixels,
        pixels.transpose(1, 2, 0),
        np.asfortranarray(pixels),
        pixels.astype(f">{pixels.dtype.str[1:]}"),
    ):
        assert np.array_equal(decode_raster(as_npy(array)).numpy(), pixels)
    assert np.array_equal(decode_raster(as_npy(pixels[0])).numpy(), pixels[:1])
    assert np.array_equal(decode_raster(as_npy(pixels, version=(2, 0))).numpy(), pixels)


@pytest.mark.parametrize(("bands", "height", "width"), [(13, 8, 8), (13, 13, 9), (13, 9, 13), (20, 16, 12), (3, 40, 3)])
def test_npy_bands_are_the_axis_of_known_length(bands: int, height: int, width: int) -> None:
    pixels = noise("uint16", bands, height, width)
    assert np.array_equal(decode_raster(as_npy(pixels), bands).numpy(), pixels)
    last = decode_raster(as_npy(pixels.transpose(1, 2, 0)), bands).numpy()
    assert np.array_equal(last, pixels.transpose(1, 2, 0) if height == bands else pixels)  # the first axis comes first
    assert decode_raster(as_npy(pixels[:, :, 0]), height).shape == (1, bands, height)  # without an axis for bands


def test_palettes_and_cmyk_become_colours() -> None:
    colours = Image.fromarray(SMOOTH)
    for image, kind in ((colours.quantize(16), "PNG"), (colours.convert("CMYK"), "JPEG")):
        file = io.BytesIO()
        image.save(file, kind)
        with Image.open(io.BytesIO(file.getvalue())) as again:
            expected = np.array(again.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(decode_raster(file.getvalue()).numpy(), expected)
    bits = io.BytesIO()
    colours.convert("1").save(bits, "PNG")
    assert set(decode_raster(bits.getvalue()).unique().tolist()) == {0, 255}


def test_tiles_can_be_written_to() -> None:
    for raw in (by_pillow(SMOOTH, "PNG"), as_npy(noise("float32", 2)), by_rasterio(noise("uint16", 5), "GTiff")):
        decode_raster(raw).zero_()


def png_of(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def npy_of(shape: tuple[int, ...], dtype: str = "<u2") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def sparse_tiff(bands: int, side: int) -> bytes:
    """A TIFF that declares pixels and holds none."""
    from rasterio import Affine
    from rasterio.io import MemoryFile

    shape = {"count": bands, "height": side, "width": side, "dtype": "uint16", "transform": Affine(10, 0, 0, 0, -10, 0)}
    with MemoryFile() as file:
        with file.open(driver="GTiff", SPARSE_OK="TRUE", interleave="band", tiled=True, **shape):
            pass
        return bytes(file.read())


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (lambda: png_of(8193, 8192), f"8192 x 8193 pixels; at most {MAX_TILE_PIXELS}"),
        (lambda: png_of(60_000, 60_000), "cannot be decoded \\(Image size"),  # Pillow's own cap comes first
        (lambda: npy_of((3, 8192, 8193)), "8192 x 8193 pixels"),
        (lambda: npy_of((2, 1 << 40, 1 << 40)), "pixels; at most"),
        (lambda: npy_of((3000, 4000, 5000)), "3000 bands of 4000 x 5000 pixels; at most"),
        (lambda: sparse_tiff(1, 8704), "8704 x 8704 pixels"),
        (lambda: sparse_tiff(300, 1024), "300 bands of 1024 x 1024 pixels; at most"),
    ],
)  # fmt: skip
def test_large_tiles_are_refused_before_decoding(raw: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(DamagedTile, match=reason):
        decode_raster(raw())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "is not JPEG, PNG, TIFF, JPEG 2000 or .npy"),
        (b"GIF89a" + bytes(50), "is not JPEG"),
        (b"<VRTDataset><SourceFilename>/etc/passwd</SourceFilename></VRTDataset>", "is not JPEG"),
        (b"\x80\x04\x95" + bytes(50), "is not JPEG"),  # a pickle
        (npy_of((3, 8, 8)) + bytes(10), "truncated"),
        (npy_of((3, 8, 8), "|O") + bytes(9999), "holds object; uint8, .* can be read"),
        (npy_of((3, 8, 8), "<f8") + bytes(9999), "holds float64"),
        (npy_of((8,)) + bytes(99), r"is an array of shape \[8\]"),
        (npy_of((3, 0, 8)), "holds no pixels"),
        (b"\x93NUMPY\x03\x00" + bytes(50), "version 3.0"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "cannot be decoded"),
    ],
)
def test_other_files_are_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(DamagedTile, match=reason) as refused:
        decode_raster(raw)
    assert "\n" not in str(refused.value)


ENCODED = {
    "jpeg": by_pillow(SMOOTH, "JPEG"),
    "png": by_pillow(noise("uint8", 3).transpose(1, 2, 0), "PNG"),
    "plain tiff": by_pillow(SMOOTH, "TIFF"),
    "npy": as_npy(noise("uint16", 3)),
}


def every_format() -> dict[str, bytes]:
    return ENCODED | {
        "tiff of bands": by_rasterio(noise("uint16", 5), "GTiff", compress="deflate"),
        "jpeg 2000": by_rasterio(noise("uint16", 3), "JP2OpenJPEG"),
        "deep png": by_rasterio(noise("uint16", 3), "PNG"),
    }


@pytest.mark.parametrize("kind", [*ENCODED, "tiff of bands", "deep png"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated_tiles_are_refused(kind: str, kept: float) -> None:
    raw = every_format()[kind]
    with pytest.raises(DamagedTile, match="cannot be decoded"):
        decode_raster(raw[: int(len(raw) * kept)])


def test_hostile_bytes_give_a_tile_or_a_reason(capfd: pytest.CaptureFixture[str]) -> None:
    """A thousand tiles with changed bytes raise only DamagedTile and print nothing."""
    draw, reasons = random.Random(0), []
    for raw in every_format().values():
        for _ in range(150):
            changed = bytearray(raw)
            for _ in range(draw.choice((1, 4, 30))):
                changed[draw.randrange(8, min(len(raw), draw.choice((60, len(raw)))))] = draw.randrange(256)
            try:
                assert decode_raster(bytes(changed)).ndim == 3
            except DamagedTile as damage:
                reasons.append(str(damage))
    assert len(reasons) > 100
    assert not any("\n" in reason for reason in reasons)
    assert capfd.readouterr().err == ""


def test_missing_rasterio_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = by_rasterio(noise("uint16", 5), "GTiff")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(UserError, match=r"pip install 'moco-accel\[geo\]'"):
        decode_raster(raw)
    assert decode_raster(by_pillow(SMOOTH, "TIFF")).shape == (3, 40, 30)
