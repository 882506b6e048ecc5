"""Decode tiles in JPEG, PNG, TIFF, JPEG 2000 and .npy to tensors of the stored type.

Sizes in a header are checked before anything is decoded. Pillow reads 8-bit pictures and 16-bit grey ones. Rasterio,
from the extra `[geo]`, reads the others: Pillow reduces 16-bit colour to 8 bits, and opens no TIFF of five bands.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from moco_accel.common.errors import UserError, error_reason
from moco_accel.common.pixels import Pixels
from moco_accel.images.gdal import read_raster
from moco_accel.images.headers import (
    MAX_ENCODED_BYTES,
    STORED_TYPES,
    DamagedTile,
    check_jpeg2000,
    check_scans,
    check_size,
    is_plain_tiff,
    tiff_tags,
)
from moco_accel.images.kinds import image_kind
from moco_accel.images.pillow import open_picture, read_pixels


def decode_raster(raw: bytes, bands: int | None = None) -> Tensor:
    """Decode one tile from the bytes of its file.

    Args:
        bands: The number of bands, if known. In an .npy file the first or last axis of this length holds the bands;
            otherwise the shorter of the two does. The first axis wins a tie.

    Returns:
        Tensor [bands, height, width] of uint8, uint16, int16 or float32. Pictures are not contiguous: their bands are
        innermost.

    Raises:
        DamagedTile: If the bytes cannot be decoded, or hold more than is read.
        UserError: If the tile needs rasterio and it is not installed.
    """
    try:
        pixels = _decode(raw, bands)
    except (DamagedTile, UserError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything for malformed bytes
        raise DamagedTile(f"cannot be decoded ({error_reason(error, 300)})") from None
    _check_type(pixels.dtype)
    return torch.from_numpy(pixels.astype(pixels.dtype.newbyteorder("="), copy=not pixels.flags.writeable))


def _decode(raw: bytes, bands: int | None) -> Pixels:
    if len(raw) > MAX_ENCODED_BYTES:
        raise DamagedTile(f"has {len(raw)} bytes; at most {MAX_ENCODED_BYTES} are read")
    kind = image_kind(raw)
    if kind is None:
        raise DamagedTile(f"is not JPEG, PNG, TIFF, JPEG 2000 or .npy (starts with {raw[:8]!r})")
    if kind == "jpeg":
        return _decode_jpeg(raw)
    if kind == "npy":
        return _decode_npy(raw, bands)
    if kind == "png" or (kind == "png16" and raw[25:26] == b"\0"):  # 16-bit grey
        return _decode_picture(raw, "PNG")
    if kind == "tiff" and is_plain_tiff(tiff_tags(raw)):
        return _decode_picture(raw, "TIFF")
    if kind == "jpeg2000":
        check_jpeg2000(raw)
    return read_raster(raw)


def _decode_jpeg(raw: bytes) -> Pixels:
    """Decode as Pillow does, in half the time; Pillow decides about what libjpeg-turbo only warns of."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
    check_size(height, width, 3)
    check_scans(raw, height, width)
    if colours not in ("Gray", "YCbCr", "RGB"):
        return _decode_picture(raw, "JPEG")
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(raw, "GRAY" if colours == "Gray" else "RGB")
    except ValueError:
        return _decode_picture(raw, "JPEG")
    return pixels.transpose(2, 0, 1)


def _decode_picture(raw: bytes, picture_format: str) -> Pixels:
    with open_picture(io.BytesIO(raw), (picture_format,)) as image:
        check_size(image.height, image.width, len(image.getbands()))
        return read_pixels(image)


def _check_type(dtype: np.dtype[Any]) -> None:
    if dtype.name not in STORED_TYPES:
        raise DamagedTile(f"holds {dtype.name}; {', '.join(STORED_TYPES)} can be read")


def _decode_npy(raw: bytes, known_bands: int | None) -> Pixels:
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise DamagedTile(f"is .npy of version {version[0]}.{version[1]}; 1.0 and 2.0 can be read")
    try:
        shape, fortran_order, dtype = read_header[version](file)
    except MemoryError:  # raised by Python's parser for thousands of signs or brackets
        raise DamagedTile("cannot be decoded (its header is no description of an array)") from None
    if len(shape) not in (2, 3):
        raise DamagedTile(f"is an array of shape {list(shape)}; [height, width] and those with bands can be read")
    whole = shape if len(shape) == 3 else (1, *shape)
    ends = whole[0], whole[2]
    bands_first = len(shape) == 2 or (whole[0] == known_bands if known_bands in ends else whole[0] <= whole[2])
    bands, height, width = whole if bands_first else (whole[2], *whole[:2])
    check_size(height, width, bands, dtype.itemsize)
    _check_type(dtype)
    count = int(np.prod(whole))
    if len(raw) - file.tell() < count * dtype.itemsize:
        raise DamagedTile("cannot be decoded (truncated)")
    pixels = np.frombuffer(raw, dtype, count, file.tell()).reshape(whole, order="F" if fortran_order else "C")
    return pixels if bands_first else pixels.transpose(2, 0, 1)
