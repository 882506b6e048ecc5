"""Read pictures with Pillow: 8 bits, or 16 bits of grey. Colour tables become RGB."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from moco_accel.common.pixels import Pixels

_CONVERSIONS = {"P": "RGB", "PA": "RGBA", "1": "L", "CMYK": "RGB", "YCbCr": "RGB"}
_PIXELS_AT_ONCE = 1 << 20


@contextmanager
def open_picture(file: Path | BinaryIO, formats: tuple[str, ...], any_size: bool = False) -> Iterator[Image.Image]:
    """Open a picture without Pillow's warnings; `any_size` lifts its limit on the number of pixels."""
    limit = Image.MAX_IMAGE_PIXELS
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # failures are raised
    try:
        if any_size:
            Image.MAX_IMAGE_PIXELS = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=formats) as image:
                yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_pixels(image: Image.Image) -> Pixels:
    """Return pixels [bands, height, width], larger where brighter: Pillow inverts white-is-zero TIFF of 8 bits.

    Rows are read in parts: at once, Pillow would hold a large image four times.
    """
    step = max(1, _PIXELS_AT_ONCE // image.width)
    pixels = np.empty(0)
    for top in range(0, image.height, step):
        part = image.crop((0, top, image.width, min(top + step, image.height)))
        rows = np.array(part.convert(_CONVERSIONS[part.mode]) if part.mode in _CONVERSIONS else part)
        pixels = pixels if top else np.empty((image.height, *rows.shape[1:]), rows.dtype)
        pixels[top : top + step] = rows
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
