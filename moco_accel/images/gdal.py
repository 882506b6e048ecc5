"""GDAL through rasterio: drivers, settings, tiles in memory, and what a dataset's bands stand for."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Pixels
from moco_accel.images.headers import check_size
from moco_accel.images.kinds import image_kind

# Only the driver of the file's own format is tried: some of GDAL's formats name further files to open.
DRIVERS = {"tiff": "GTiff", "jpeg2000": "JP2OpenJPEG", "jpeg": "JPEG", "png": "PNG", "png16": "PNG"}
_SETTINGS = {"GDAL_CACHEMAX": 64, "GDAL_NUM_THREADS": 1}  # MiB; GDAL's default is 5 % of memory in each process
_IN_MEMORY = _SETTINGS | {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}  # no other files
_WINDOW_SIDE = 64
_MAX_MASK_VALUES = 16
_MAX_SOFT_SHARE = 0.1  # of pixels: a mask may have soft edges


def load_rasterio(needed_by: str) -> Any:
    """Import rasterio and silence its log: failures are raised.

    Raises:
        UserError: If rasterio is not installed; the message begins with `needed_by`.
    """
    try:
        import rasterio
        import rasterio.errors
        import rasterio.io
    except ImportError:
        raise UserError(f"{needed_by}; pip install 'moco-accel[geo]'") from None
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)
    return rasterio


def gdal_settings() -> AbstractContextManager[Any]:
    """Return a context in which GDAL has a small cache and one thread; without rasterio, it does nothing."""
    try:
        return load_rasterio("").Env(**_SETTINGS)  # type: ignore[no-any-return]
    except UserError:  # pictures do not need it, and opening a raster raises
        return nullcontext()


def read_raster(raw: bytes) -> Pixels:
    """Return all bands [bands, height, width] as stored. Raises DamagedTile, and UserError without rasterio."""
    with _open(raw) as image:
        check_size(image.height, image.width, image.count, max(np.dtype(name).itemsize for name in image.dtypes))
        return image.read()  # type: ignore[no-any-return]


def nodata_tag(raw: bytes) -> float | None:
    """Return a GeoTIFF's nodata number; None for NaN, which needs none. Raises UserError without rasterio."""
    if image_kind(raw) != "tiff":
        return None
    with _open(raw) as image:
        return None if image.nodata is None or math.isnan(image.nodata) else float(image.nodata)


def band_descriptions(raw: bytes) -> list[str | None]:
    """Return the names that a TIFF or JPEG 2000 file gives its bands. Raises UserError without rasterio."""
    with _open(raw) as image:
        return list(image.descriptions)


@contextmanager
def _open(raw: bytes) -> Iterator[Any]:
    driver = DRIVERS[image_kind(raw) or "tiff"]
    rasterio = load_rasterio(f"{driver} tiles that are not 8-bit RGB or grey need rasterio")
    with warnings.catch_warnings(), rasterio.Env(**_IN_MEMORY), rasterio.io.MemoryFile(raw) as file:
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with file.open(driver=driver) as image:
            yield image


def is_white_zero(dataset: Any) -> bool:
    """Check whether a dataset is an 8-bit grey TIFF that stores 0 for white, which GDAL does not invert."""
    if dataset.count != 1 or dataset.dtypes[0] != "uint8" or "NBITS" in dataset.tags(1, ns="IMAGE_STRUCTURE"):
        return False
    return bool(dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES")


def band_colours(dataset: Any) -> list[str]:
    """Return GDAL's colour of each band: "red", "gray", "alpha", "palette", "undefined" and others."""
    return ["gray"] if is_white_zero(dataset) else [colour.name for colour in dataset.colorinterp]


def alpha_bands(dataset: Any) -> list[int]:
    """Return the numbers of the bands that GDAL calls alpha, without those whose own name differs."""
    bands = enumerate(zip(dataset.colorinterp, dataset.descriptions, strict=True), start=1)
    return [number for number, (kind, name) in bands if kind.name == "alpha" and "alpha" in (name or "alpha").lower()]


def is_mask_band(dataset: Any, number: int) -> bool:
    """Check whether a band holds little besides 0 and its type's maximum, in nine windows of it.

    GDAL calls the fourth of four bands alpha, but it is often near infrared.
    """
    height, width = min(_WINDOW_SIDE, dataset.height), min(_WINDOW_SIDE, dataset.width)
    tops = [(dataset.height - height) * place // 2 for place in range(3)]
    lefts = [(dataset.width - width) * place // 2 for place in range(3)]
    read = [_read_window(dataset, number, top, left, height, width) for top in tops for left in lefts]
    windows = [window for window in read if window is not None]
    if not windows:
        return True
    values, counts = np.unique(np.stack(windows), return_counts=True)
    highest = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1.0
    is_between = (values > 0) & (values < highest)
    return bool(is_between.sum() <= _MAX_MASK_VALUES or counts[is_between].sum() <= _MAX_SOFT_SHARE * counts.sum())


def _read_window(dataset: Any, number: int, row: int, col: int, height: int, width: int) -> Pixels | None:
    """Return a window, or None where the file is damaged: only the tiles there are lost."""
    from rasterio.errors import RasterioError

    try:
        return np.asarray(dataset.read(number, window=((row, row + height), (col, col + width))))
    except RasterioError:
        return None
