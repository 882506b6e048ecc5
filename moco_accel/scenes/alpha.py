"""A band called alpha: a mask of data, or one more band that nobody named."""

from __future__ import annotations

from typing import Any

import numpy as np

from moco_accel.common.pixels import Pixels

_SIDE = 64  # of the windows looked at, three by three of them
_MASK_VALUES = 16
_MASK_SHARE = 0.1  # of pixels that soft edges may have


def called_alpha(dataset: Any) -> list[int]:
    """Numbers of the bands that GDAL calls alpha, and whose own name does not say otherwise."""
    names = [(name or "alpha").lower() for name in dataset.descriptions]
    return [
        number
        for number, (kind, name) in enumerate(zip(dataset.colorinterp, names, strict=True), start=1)
        if kind.name == "alpha" and "alpha" in name
    ]


def is_mask(dataset: Any, number: int) -> bool:
    """Whether a band holds little besides 0 and its type's largest number, in a few windows of it.

    GDAL takes the fourth of four bands for alpha, and near infrared is what it often is.
    """
    height, width = min(_SIDE, dataset.height), min(_SIDE, dataset.width)
    corners = [
        ((dataset.height - height) * down // 2, (dataset.width - width) * right // 2)
        for down in range(3)
        for right in range(3)
    ]
    windows = [found for corner in corners if (found := _read(dataset, number, *corner, height, width)) is not None]
    if not windows:
        return True
    values, times = np.unique(np.stack(windows), return_counts=True)
    between = (values > 0) & (values < _full(values.dtype))
    return bool(between.sum() <= _MASK_VALUES or times[between].sum() <= _MASK_SHARE * times.sum())


def _read(dataset: Any, number: int, row: int, col: int, height: int, width: int) -> Pixels | None:
    """None where the file is damaged: that costs the tiles there alone."""
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    try:
        return np.asarray(dataset.read(number, window=Window(col, row, width, height)))
    except RasterioError:
        return None


def _full(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind in "ui" else 1.0
