"""Read pictures with Pillow: 8 bits, or 16 bits of grey. Colour tables become RGB, alpha marks transparent pixels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from moco_accel.common.pixels import Mask
from moco_accel.images.decoded import DecodedImage

_CONVERSIONS = {"P": "RGB", "PA": "RGBA", "1": "L", "CMYK": "RGB", "YCbCr": "RGB"}
_WITH_ALPHA = {"1": "LA", "L": "LA", "LA": "LA", "P": "RGBA", "PA": "RGBA", "RGB": "RGBA", "RGBA": "RGBA"}
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


def decode_picture(image: Image.Image, keep_alpha: bool = False) -> DecodedImage:
    """Return pixels, larger where brighter: Pillow inverts white-is-zero TIFF of 8 bits.

    Rows are read in parts: at once, Pillow would hold a large image four times.

    Args:
        keep_alpha: Keep an alpha band among the bands; otherwise it is left out and marks transparent pixels.
    """
    has_alpha = not keep_alpha and image.has_transparency_data and image.mode in _WITH_ALPHA
    step = max(1, _PIXELS_AT_ONCE // image.width)
    pixels, valid = np.empty(0), np.ones((image.height, image.width) if has_alpha else (0, 0), np.bool_)
    for top in range(0, image.height, step):
        part = image.crop((0, top, image.width, min(top + step, image.height)))
        mode = _WITH_ALPHA[part.mode] if has_alpha else _CONVERSIONS.get(part.mode, part.mode)
        rows = np.array(part if part.mode == mode else part.convert(mode))
        if has_alpha:
            valid[top : top + step] = rows[..., -1] > 0
            rows = rows[..., 0] if mode == "LA" else rows[..., :-1]
        pixels = pixels if top else np.empty((image.height, *rows.shape[1:]), rows.dtype)
        pixels[top : top + step] = rows
    bands = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    # of 16 bits, Pillow knows only the value that is transparent
    hidden = image.info.get("transparency") if image.mode.startswith("I") else None
    return DecodedImage(bands, hidden, _as_mask(valid) if has_alpha else None)


def _as_mask(valid: Mask) -> Mask | None:
    return None if valid.all() else valid
