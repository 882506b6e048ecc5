"""Decode tiles in JPEG, PNG, TIFF, JPEG 2000 and .npy to tensors of the stored type.

Sizes in a header are checked before anything is decoded. Pillow reads 8-bit pictures and 16-bit grey ones. Rasterio,
from the extra `[geo]`, reads the others: Pillow reduces 16-bit colour to 8 bits, and opens no TIFF of five bands.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from moco_accel.common.errors import UserError, error_reason
from moco_accel.common.pixels import Pixels
from moco_accel.images.decoded import DecodedImage, ImageFacts
from moco_accel.images.gdal import raster_facts, read_raster
from moco_accel.images.headers import (
    MAX_ENCODED_BYTES,
    READABLE_TYPES,
    STORED_TYPES,
    DamagedTile,
    check_jpeg2000,
    check_scans,
    check_size,
    is_plain_tiff,
    plain_tiff_bands,
    tiff_pages,
    tiff_tags,
)
from moco_accel.images.kinds import Kind, image_kind
from moco_accel.images.pillow import decode_picture, open_picture

_GDAL_METADATA = 42112  # may hold scale and offset


def decode_raster(raw: bytes, bands: int | None = None) -> Tensor:
    """Decode one tile of a stored type, with all its bands, from the bytes of its file.

    Args:
        bands: As `decode_image` takes it.

    Returns:
        Tensor [bands, height, width] of uint8, uint16, int16 or float32. Pictures are not contiguous: their bands are
        innermost.

    Raises:
        DamagedTile: If the bytes cannot be decoded, or hold more or another type than is read.
        UserError: If the tile needs rasterio and it is not installed.
    """
    pixels = decode_image(raw, bands).pixels
    _check_type(pixels.dtype, STORED_TYPES)
    return torch.from_numpy(pixels.astype(pixels.dtype.newbyteorder("="), copy=not pixels.flags.writeable))


def decode_image(raw: bytes, bands: int | None = None, keep_alpha: bool = True) -> DecodedImage:
    """Decode one image with what it declares to be no data.

    Args:
        bands: The number of bands, if known. In an .npy file the first or last axis of this length holds the bands;
            otherwise the shorter of the two does. The first axis wins a tie.
        keep_alpha: Keep an alpha band among the bands; otherwise it is left out and marks transparent pixels.

    Raises:
        DamagedTile: If the bytes cannot be decoded, or hold more than is read.
        UserError: If the image needs rasterio and it is not installed.
    """
    try:
        image = _decode(raw, bands, keep_alpha)
    except (DamagedTile, UserError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything for malformed bytes
        raise DamagedTile(f"cannot be decoded ({error_reason(error, 300)})") from None
    _check_type(image.pixels.dtype, READABLE_TYPES)
    return image


def image_facts(raw: bytes) -> ImageFacts:
    """Return what an image's header says about its values.

    Raises:
        DamagedTile: If there is no such header.
        UserError: If the image needs rasterio and it is not installed.
    """
    try:
        return _read_facts(raw)
    except (DamagedTile, UserError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything for malformed bytes
        raise DamagedTile(f"cannot be decoded ({error_reason(error, 300)})") from None


def _read_facts(raw: bytes) -> ImageFacts:
    kind = _check_kind(raw)
    if kind == "jpeg":
        colours = simplejpeg.decode_jpeg_header(raw)[2]
        return ImageFacts("uint8", bands=1 if colours == "Gray" else 3)
    if kind == "npy":
        return ImageFacts(_read_npy_header(io.BytesIO(raw))[2].name)
    if kind == "png":
        with open_picture(io.BytesIO(raw), ("PNG",)) as image:
            return ImageFacts("uint8", has_alpha=image.has_transparency_data, bands=len(image.getbands()))
    if kind == "tiff" and is_plain_tiff(tags := tiff_tags(raw)) and _GDAL_METADATA not in tags:
        pages, has_mask = tiff_pages(raw)
        if not has_mask:
            return ImageFacts("uint8", bands=plain_tiff_bands(tags), pages=pages)
    if kind == "jpeg2000":
        check_jpeg2000(raw)
    return raster_facts(raw)


def _check_kind(raw: bytes) -> Kind:
    if len(raw) > MAX_ENCODED_BYTES:
        raise DamagedTile(f"has {len(raw)} bytes; at most {MAX_ENCODED_BYTES} are read")
    kind = image_kind(raw)
    if kind is None:
        raise DamagedTile(f"is not JPEG, PNG, TIFF, JPEG 2000 or .npy (starts with {raw[:8]!r})")
    return kind


def _decode(raw: bytes, bands: int | None, keep_alpha: bool) -> DecodedImage:
    kind = _check_kind(raw)
    if kind == "jpeg":
        return DecodedImage(_decode_jpeg(raw))
    if kind == "npy":
        return DecodedImage(_decode_npy(raw, bands))
    if kind == "png" or (kind == "png16" and raw[25:26] == b"\0"):  # 16-bit grey
        return _decode_picture(raw, "PNG", keep_alpha)
    if kind == "tiff" and is_plain_tiff(tiff_tags(raw)) and not tiff_pages(raw)[1]:
        return _decode_picture(raw, "TIFF", keep_alpha)
    if kind == "jpeg2000":
        check_jpeg2000(raw)
    return read_raster(raw, keep_alpha)


def _decode_jpeg(raw: bytes) -> Pixels:
    """Decode as Pillow does, in half the time; Pillow decides about what libjpeg-turbo only warns of."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
    check_size(height, width, 3)
    check_scans(raw, height, width)
    if colours not in ("Gray", "YCbCr", "RGB"):
        return _decode_picture(raw, "JPEG", keep_alpha=False).pixels
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(raw, "GRAY" if colours == "Gray" else "RGB")
    except ValueError:
        return _decode_picture(raw, "JPEG", keep_alpha=False).pixels
    return pixels.transpose(2, 0, 1)


def _decode_picture(raw: bytes, picture_format: str, keep_alpha: bool) -> DecodedImage:
    with open_picture(io.BytesIO(raw), (picture_format,)) as image:
        check_size(image.height, image.width, len(image.getbands()))
        return decode_picture(image, keep_alpha)


def _check_type(dtype: np.dtype[Any], types: Sequence[str]) -> None:
    if dtype.name not in types:
        raise DamagedTile(f"holds {dtype.name}; {', '.join(types)} can be read")


def _decode_npy(raw: bytes, known_bands: int | None) -> Pixels:
    file = io.BytesIO(raw)
    shape, fortran_order, dtype = _read_npy_header(file)
    if len(shape) not in (2, 3):
        raise DamagedTile(f"is an array of shape {list(shape)}; [height, width] and those with bands can be read")
    whole = shape if len(shape) == 3 else (1, *shape)
    ends = whole[0], whole[2]
    bands_first = len(shape) == 2 or (whole[0] == known_bands if known_bands in ends else whole[0] <= whole[2])
    bands, height, width = whole if bands_first else (whole[2], *whole[:2])
    check_size(height, width, bands, dtype.itemsize)
    _check_type(dtype, READABLE_TYPES)
    count = int(np.prod(whole))
    if len(raw) - file.tell() < count * dtype.itemsize:
        raise DamagedTile("cannot be decoded (truncated)")
    pixels = np.frombuffer(raw, dtype, count, file.tell()).reshape(whole, order="F" if fortran_order else "C")
    return pixels if bands_first else pixels.transpose(2, 0, 1)


def _read_npy_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise DamagedTile(f"is .npy of version {version[0]}.{version[1]}; 1.0 and 2.0 can be read")
    try:
        return read_header[version](file)
    except MemoryError:  # raised by Python's parser for thousands of signs or brackets
        raise DamagedTile("cannot be decoded (its header is no description of an array)") from None
