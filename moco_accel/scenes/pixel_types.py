"""Types of tiles for imagery of wider types, chosen from sampled values, and the casts, which check for loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Mask, Pixels, cast_with_loss, holds
from moco_accel.images.gdal import sample_windows
from moco_accel.scenes.image_files import UnreadableImage

WIDE_TYPES = ("int8", "int32", "uint32", "int64", "uint64", "float64")

Range = tuple[int, int]


class LossyCast(UnreadableImage):
    """A window with values that the type of the tiles cannot hold; the message says so."""


def sampled_range(bands: Sequence[tuple[Any, int]], nodata: Sequence[float | None]) -> Range | None:
    """Return the lowest and highest value in nine windows of each band (dataset, number); None if all are no data."""
    lowest, highest = [], []
    for (dataset, number), empty in zip(bands, nodata, strict=True):
        for window in sample_windows(dataset, number):
            values = window if empty is None else window[window != empty]
            if values.size:
                lowest.append(int(values.min()))
                highest.append(int(values.max()))
    return (min(lowest), max(highest)) if lowest else None


def tile_type(stored: str, ranges: Sequence[Range | None]) -> str:
    """Return the type of tiles from imagery of a wide type: uint16 or int16 if all sampled values fit, else float32."""
    if stored == "float64":
        return "float32"
    known = [found for found in ranges if found is not None]
    low, high = min((low for low, _ in known), default=0), max((high for _, high in known), default=0)
    fitting = (dtype for dtype in ("uint16", "int16") if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max)
    return "int16" if stored == "int8" else next(fitting, "float32")


def cast_pixels(pixels: Pixels, dtype: str, valid: Mask | None) -> Pixels:
    """Cast pixels [bands, height, width] to the type of the tiles; those that are not `valid` may become anything.

    Raises:
        LossyCast: If a valid pixel does not fit: it is out of range, or a whole number that float32 would round.
    """
    cast, lost = cast_with_loss(pixels, dtype)
    if (lost if valid is None else lost & valid).any():
        raise LossyCast(f"values that {dtype} cannot hold")
    return cast


def fits_type(value: float | None, dtype: str) -> bool:
    """Check whether `dtype` can hold a nodata number, which may be NaN or infinite in floats."""
    is_unbounded = value is not None and dtype.startswith("float") and not math.isfinite(value)
    return is_unbounded or holds(dtype, value)


def check_nodata(nodata: float | None, dtype: str) -> None:
    """Raise UserError if --nodata is a number that tiles of `dtype` cannot hold."""
    if nodata is None or fits_type(nodata, dtype):
        return
    limits = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    kind = "numbers" if dtype.startswith("float") else "whole numbers"
    works = -9999 if limits.min < 0 else 0
    raise UserError(
        f"--nodata={nodata:g}: the imagery is {dtype}, which holds {kind} from {limits.min:.8g} to {limits.max:.8g}; "
        f"--nodata {works} works"
    )
