"""Array types of tiles, their nodata mask, and which numbers a type holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def valid_pixels(tile: Pixels, nodata: float | Sequence[float | None] | None) -> Mask | None:
    """Return a mask [height, width], False where `tile` [bands, height, width] holds no data; None if it is all True.

    A pixel holds no data if any band has its nodata value; in 8-bit tiles, where that value is common, if all bands
    have it. A pixel of a float tile holds no data if any band is NaN or infinite.
    """
    numbers = list(nodata) if isinstance(nodata, Sequence) else [nodata] * len(tile)
    marked = [np.asarray(band == number) for band, number in zip(tile, numbers, strict=True) if number is not None]
    empty = np.zeros(tile.shape[1:], np.bool_)
    if marked:
        empty |= np.logical_and.reduce(marked) if tile.dtype == np.uint8 else np.logical_or.reduce(marked)
    if tile.dtype.kind == "f":
        empty |= ~np.isfinite(tile).all(axis=0)
    return ~empty if empty.any() else None


def holds(dtype: str, number: float | None) -> bool:
    """Check whether a type holds a finite number; None, NaN and infinity it does not, one bit holds none."""
    kind = np.dtype(dtype).kind
    if number is None or not math.isfinite(number) or kind == "b":
        return False
    if kind == "f":
        with np.errstate(over="ignore"):  # files round the largest float
            return bool(np.isfinite(np.dtype(dtype).type(number)))
    limits = np.iinfo(dtype)
    return limits.min <= number <= limits.max and float(number).is_integer()


def cast_with_loss(pixels: Pixels, dtype: str) -> tuple[Pixels, Mask]:
    """Return a copy of `pixels` as `dtype`, and a mask of the values that are lost.

    These are whole numbers that `dtype` does not hold or would round, and finite floats that would become infinite.
    Floats may be rounded, which training would not see.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        cast = pixels.astype(dtype)
        if pixels.dtype.kind == "f":
            return cast, np.isfinite(pixels) & ~np.isfinite(cast)
        lost: Mask = np.asarray(cast.astype(pixels.dtype) != pixels)
    if cast.dtype.kind == "f":  # rounded up to where casting back is undefined
        return cast, lost | (cast >= np.iinfo(pixels.dtype).max + 1.0)
    limits = np.iinfo(dtype)  # a number may wrap there and back
    return cast, lost | (pixels < limits.min) | (pixels > limits.max)
