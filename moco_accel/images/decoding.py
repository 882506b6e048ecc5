"""Encoded tiles → tensors of the stored type: JPEG, PNG, TIFF, JPEG 2000 and .npy, told apart by their first bytes.

What a file says of its size is checked before anything is decoded, and no other format is ever tried. Pillow reads
8-bit pictures and 16-bit grey ones; rasterio, the extra `[geo]`, the rest: Pillow cuts 16-bit colour down to 8 bits,
and opens no TIFF of five bands.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Pixels
from moco_accel.images.headers import (
    BIG_TIFF,
    MAX_ENCODED_BYTES,
    MAX_TILE_PIXELS,
    TIFF,
    TIFF_BITS,
    TIFF_FORMAT,
    TIFF_PHOTOMETRIC,
    TIFF_SAMPLES,
    DamagedTile,
    check_jpeg2000,
    check_scans,
    check_size,
    tiff_tags,
)

__all__ = ["MAX_TILE_PIXELS", "STORED_TYPES", "DamagedTile", "band_descriptions", "decode_raster", "nodata_tag"]

_CACHE_MB = 64  # of GDAL's blocks, else a twentieth of the machine
_PIXELS_AT_ONCE = 1 << 20
STORED_TYPES = ("uint8", "uint16", "int16", "float32")

JPEG, PNG, NPY = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
"""What such files begin with."""
_JPEG2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xffO\xffQ")  # in its box, and bare
_CONVERTED = {"P": "RGB", "PA": "RGBA", "1": "L", "CMYK": "RGB", "YCbCr": "RGB"}  # what stands for colours


def decode_raster(raw: bytes, bands: int | None = None) -> Tensor:
    """Bytes of one tile → `[bands, height, width]`, uint8, uint16, int16 or float32, as stored.

    Not always contiguous: pictures keep their bands innermost. Of an .npy the first or the last axis is the bands: the
    one of length `bands`, where that is known, else the shorter one; the first if both are. Raises DamagedTile, and
    UserError where rasterio is needed and missing.
    """
    try:
        pixels = _decode(raw, bands)
    except (DamagedTile, UserError, MemoryError):
        raise
    except Exception as error:  # whatever a decoder makes of bytes that it was not made for
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DamagedTile(f"cannot be decoded ({reason})") from None
    if pixels.dtype.name not in STORED_TYPES:
        raise DamagedTile(f"holds {pixels.dtype.name}; {', '.join(STORED_TYPES)} can be read")
    return torch.from_numpy(pixels.astype(pixels.dtype.newbyteorder("="), copy=not pixels.flags.writeable))


def _decode(raw: bytes, bands: int | None) -> Pixels:
    if len(raw) > MAX_ENCODED_BYTES:
        raise DamagedTile(f"has {len(raw)} bytes; at most {MAX_ENCODED_BYTES} are read")
    if raw.startswith(JPEG):
        return _jpeg(raw)
    if raw.startswith(PNG):
        is_deep_colour = raw[24:25] == b"\x10" and raw[25:26] != b"\0"
        return _by_rasterio(raw, "PNG") if is_deep_colour else _by_pillow(raw, "PNG")
    if raw.startswith(TIFF + BIG_TIFF):
        is_plain = _is_plain(tiff_tags(raw)) and raw.startswith(TIFF)
        return _by_pillow(raw, "TIFF") if is_plain else _by_rasterio(raw, "GTiff")
    if raw.startswith(_JPEG2000):
        check_jpeg2000(raw)
        return _by_rasterio(raw, "JP2OpenJPEG")
    if raw.startswith(NPY):
        return _from_npy(raw, bands)
    raise DamagedTile(f"is not JPEG, PNG, TIFF, JPEG 2000 or .npy (starts with {raw[:8]!r})")


def _jpeg(raw: bytes) -> Pixels:
    """Pillow's pixels in half the time. What libjpeg warns of may be no damage: there Pillow decides."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
    check_size(height, width, 3)
    check_scans(raw, height, width)
    if colours not in ("Gray", "YCbCr", "RGB"):
        return _by_pillow(raw, "JPEG")
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(raw, "GRAY" if colours == "Gray" else "RGB")
    except ValueError:
        return _by_pillow(raw, "JPEG")
    return pixels.transpose(2, 0, 1)


def _by_pillow(raw: bytes, picture_format: str) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags and chunks: what damages a tile is raised
        with Image.open(io.BytesIO(raw), formats=[picture_format]) as image:
            check_size(image.height, image.width, len(image.getbands()))
            pixels = _as_array(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _as_array(image: Image.Image) -> Pixels:
    """[height, width] or [height, width, bands]. By rows: all at once, Pillow would hold a large image four times."""
    if image.height == 1 or image.height * image.width <= _PIXELS_AT_ONCE:
        return np.array(image.convert(_CONVERTED[image.mode]) if image.mode in _CONVERTED else image)
    step = max(1, _PIXELS_AT_ONCE // image.width)
    starts = range(0, image.height, step)
    parts = (image.crop((0, top, image.width, min(top + step, image.height))) for top in starts)
    first = _as_array(next(parts))
    pixels = np.empty((image.height, *first.shape[1:]), first.dtype)
    pixels[:step] = first
    for top, part in zip(starts[1:], parts, strict=True):
        pixels[top : top + step] = _as_array(part)
    return pixels


def _is_plain(tags: dict[int, tuple[int, ...]]) -> bool:
    """8-bit grey or RGB, which Pillow gives back as stored."""
    samples, photometric = tags.get(TIFF_SAMPLES, (1,)), tags.get(TIFF_PHOTOMETRIC, ())
    is_unsigned = set(tags.get(TIFF_FORMAT, (1,))) == {1}
    return (
        set(tags.get(TIFF_BITS, (1,))) == {8} and is_unsigned and (samples, photometric) in {((1,), (1,)), ((3,), (2,))}
    )


def nodata_tag(raw: bytes) -> float | None:
    """What a GeoTIFF declares to stand where there is no data; None of NaN, which needs no declaring.

    Raises UserError where rasterio is needed and missing.
    """
    if not raw.startswith(TIFF + BIG_TIFF):
        return None
    with _opened(raw, "GTiff") as image:
        return None if image.nodata is None or math.isnan(image.nodata) else float(image.nodata)


def band_descriptions(raw: bytes) -> list[str | None]:
    """What a TIFF or a JPEG 2000 calls its bands. Raises UserError where rasterio is needed and missing."""
    with _opened(raw, "JP2OpenJPEG" if raw.startswith(_JPEG2000) else "GTiff") as image:
        return list(image.descriptions)


def _by_rasterio(raw: bytes, driver: str) -> Pixels:
    with _opened(raw, driver) as image:
        check_size(image.height, image.width, image.count, max(np.dtype(name).itemsize for name in image.dtypes))
        return image.read()  # type: ignore[no-any-return]


@contextmanager
def _opened(raw: bytes, driver: str) -> Iterator[Any]:
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
        from rasterio.io import MemoryFile
    except ImportError:
        raise UserError(
            f"{driver} tiles that are not 8-bit RGB or grey need rasterio; pip install 'moco-accel[geo]'"
        ) from None
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what fails is raised; odd tags are no news, tile by tile
    # it would else look for files beside the tile, and report errors of its threads on the terminal
    alone = rasterio.Env(
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO", GDAL_NUM_THREADS=1, GDAL_CACHEMAX=_CACHE_MB
    )
    with warnings.catch_warnings(), alone, MemoryFile(raw) as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with file.open(driver=driver) as image:
            yield image


def _from_npy(raw: bytes, known_bands: int | None) -> Pixels:
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise DamagedTile(f"is .npy of version {version[0]}.{version[1]}; 1.0 and 2.0 can be read")
    try:
        shape, fortran_order, dtype = read_header[version](file)
    except MemoryError:  # what Python's parser says of thousands of signs or brackets
        raise DamagedTile("cannot be decoded (its header is no description of an array)") from None
    if len(shape) not in (2, 3):
        raise DamagedTile(f"is an array of shape {list(shape)}; [height, width] and those with bands can be read")
    whole = shape if len(shape) == 3 else (1, *shape)
    ends = whole[0], whole[2]
    bands_first = len(shape) == 2 or (whole[0] == known_bands if known_bands in ends else whole[0] <= whole[2])
    bands, height, width = whole if bands_first else (whole[2], *whole[:2])
    check_size(height, width, bands, dtype.itemsize)
    if dtype.name not in STORED_TYPES:
        raise DamagedTile(f"holds {dtype.name}; {', '.join(STORED_TYPES)} can be read")
    count = int(np.prod(whole))
    if len(raw) - file.tell() < count * dtype.itemsize:
        raise DamagedTile("cannot be decoded (truncated)")
    pixels = np.frombuffer(raw, dtype, count, file.tell()).reshape(whole, order="F" if fortran_order else "C")
    return pixels if bands_first else pixels.transpose(2, 0, 1)
