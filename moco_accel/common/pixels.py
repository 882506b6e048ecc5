"""Array types of tiles, and their nodata mask."""

from __future__ import annotations

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
