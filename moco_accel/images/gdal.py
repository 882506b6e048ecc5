"""GDAL through rasterio: drivers, settings, tiles in memory, and what a dataset's bands stand for."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Mask, Pixels
from moco_accel.images.decoded import DecodedImage, ImageFacts
from moco_accel.images.headers import check_size, tiff_pages
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


def read_raster(raw: bytes, keep_alpha: bool = True) -> DecodedImage:
    """Return all bands as stored; a colour table becomes RGB, black and white become 0 and 255.

    Args:
        keep_alpha: Keep an alpha band among the bands; otherwise it is left out and marks transparent pixels.

    Raises:
        DamagedTile: If the image is larger than what is read.
        UserError: Without rasterio.
    """
    with _open(raw) as image:
        colours = 3 if has_colour_table(image) else image.count
        check_size(image.height, image.width, colours, max(np.dtype(name).itemsize for name in image.dtypes))
        pixels = image.read(stored_bands(image))
        valid = np.asarray(image.dataset_mask() > 0) if has_mask(image) else None
        if has_colour_table(image):
            return _look_up_colours(image, pixels[0], valid)
        alphas = [] if keep_alpha else [number - 1 for number in alpha_bands(image)]
        if alphas and len(alphas) < len(pixels):
            shown = np.asarray(pixels[alphas[0]] > 0)
            valid = shown if valid is None else valid & shown
            pixels = np.delete(pixels, alphas, axis=0)
        return DecodedImage(to_brightness(image, pixels), _nodata(image), valid)


def raster_facts(raw: bytes) -> ImageFacts:
    """Return what the header of a TIFF, PNG or JPEG 2000 says about its values. Raises UserError without rasterio."""
    with _open(raw) as image:
        bands = stored_bands(image)
        scaling = tuple((image.scales[number - 1], image.offsets[number - 1]) for number in bands)
        names = tuple(image.descriptions[number - 1] for number in bands)
        is_scaled = any(pair != (1, 0) for pair in scaling)
        is_table = has_colour_table(image)
        hides = is_table and any(alpha == 0 for *_, alpha in image.colormap(1).values())
        return ImageFacts(
            "uint8" if is_table else image.dtypes[0],
            None if is_table else _nodata(image),
            scaling if is_scaled else (),
            bool(alpha_bands(image)) or hides,
            has_mask(image),
            3 if is_table else len(bands),
            () if is_table or not all(names) else names,
            tiff_pages(raw)[0] if image_kind(raw) == "tiff" else 1,
        )


def _nodata(image: Any) -> float | None:
    return None if image.nodata is None else float(to_brightness(image, np.asarray(image.nodata)))


def has_mask(dataset: Any) -> bool:
    """Check whether a file holds a mask besides its bands, or has one beside it; alpha is a band."""
    flags = {flag.name for flag in dataset.mask_flag_enums[0]}
    return "per_dataset" in flags and "alpha" not in flags


def has_colour_table(dataset: Any) -> bool:
    """Check whether a dataset's numbers are entries of a colour table, other than black and white."""
    return dataset.count == 1 and band_colours(dataset) == ["palette"]


def _look_up_colours(image: Any, entries: Pixels, shown: Mask | None) -> DecodedImage:
    """Return RGB; entries that are transparent, or declared to be no data, are marked."""
    table = np.zeros((max(image.colormap(1)) + 1, 4), np.uint8)
    for entry, colour in image.colormap(1).items():
        table[entry] = colour
    colours = table[np.minimum(entries, len(table) - 1)]
    valid = colours[..., 3] > 0
    if image.nodata is not None:
        valid &= entries != image.nodata
    if shown is not None:
        valid &= shown
    return DecodedImage(colours[..., :3].transpose(2, 0, 1), None, None if valid.all() else valid)


def band_descriptions(raw: bytes) -> list[str | None]:
    """Return the names that a TIFF or JPEG 2000 file gives its bands. Raises UserError without rasterio."""
    with _open(raw) as image:
        return [image.descriptions[number - 1] for number in stored_bands(image)]


@contextmanager
def _open(raw: bytes) -> Iterator[Any]:
    driver = DRIVERS[image_kind(raw) or "tiff"]
    rasterio = load_rasterio(f"{driver} tiles that are not 8-bit RGB or grey need rasterio")
    with warnings.catch_warnings(), rasterio.Env(**_IN_MEMORY), rasterio.io.MemoryFile(raw) as file:
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with file.open(driver=driver) as image:
            yield image


def is_white_zero(dataset: Any) -> bool:
    """Check whether a dataset is a grey TIFF of 8 or 16 bits that stores 0 for white, which GDAL does not invert."""
    if dataset.count != 1 or dataset.dtypes[0] not in ("uint8", "uint16") or _bits(dataset):
        return False
    return bool(dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES")


def _bits(dataset: Any) -> str | None:
    """Return the bits of a value if they are fewer than those of its type."""
    found: str | None = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    return found


def _is_black_and_white(dataset: Any) -> bool:
    """Check for one bit per value, which GDAL gives a colour table of black and white."""
    if dataset.count != 1 or _bits(dataset) != "1" or dataset.colorinterp[0].name != "palette":
        return False
    table = dataset.colormap(1)
    return {table.get(0, ())[:3], table.get(1, ())[:3]} == {(0, 0, 0), (255, 255, 255)}


def to_brightness(dataset: Any, values: Pixels) -> Pixels:
    """Return stored values, larger where brighter: white-is-zero is inverted, one bit becomes 0 and 255."""
    if _is_black_and_white(dataset):
        is_white = values == 1 if dataset.colormap(1)[1][0] else values == 0
        return np.where(is_white, np.uint8(255), np.uint8(0))
    return np.iinfo(dataset.dtypes[0]).max - values if is_white_zero(dataset) else values


def band_colours(dataset: Any) -> list[str]:
    """Return GDAL's colour of each band: "red", "gray", "alpha", "palette", "undefined" and others."""
    is_grey = is_white_zero(dataset) or _is_black_and_white(dataset)
    return ["gray"] if is_grey else [colour.name for colour in dataset.colorinterp]


def stored_bands(dataset: Any) -> list[int]:
    """Return the numbers of the bands that a file holds: GDAL adds an alpha to CMYK and Lab, which it turns to RGB."""
    is_converted = dataset.driver == "GTiff" and "SOURCE_COLOR_SPACE" in dataset.tags(ns="IMAGE_STRUCTURE")
    return [1, 2, 3] if is_converted and dataset.count == 4 else list(range(1, dataset.count + 1))


def alpha_bands(dataset: Any) -> list[int]:
    """Return the numbers of the bands that GDAL calls alpha, without those whose own name differs."""
    kinds, names = dataset.colorinterp, dataset.descriptions
    called = [number for number in stored_bands(dataset) if kinds[number - 1].name == "alpha"]
    return [number for number in called if "alpha" in (names[number - 1] or "alpha").lower()]


def is_mask_band(dataset: Any, number: int) -> bool:
    """Check whether a band holds little besides 0 and its type's maximum, in nine windows of it.

    GDAL calls the fourth of four bands alpha, but it is often near infrared.
    """
    windows = sample_windows(dataset, number)
    if not windows:
        return True
    return looks_like_mask(np.stack(windows))


def looks_like_mask(pixels: Pixels) -> bool:
    """Check whether pixels hold little besides 0 and their type's maximum."""
    values, counts = np.unique(pixels, return_counts=True)
    highest = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1.0
    is_between = (values > 0) & (values < highest)
    return bool(is_between.sum() <= _MAX_MASK_VALUES or counts[is_between].sum() <= _MAX_SOFT_SHARE * counts.sum())


def sample_windows(dataset: Any, number: int) -> list[Pixels]:
    """Read nine windows of a band, spread evenly; those in damaged parts of the file are left out."""
    height, width = min(_WINDOW_SIDE, dataset.height), min(_WINDOW_SIDE, dataset.width)
    tops = [(dataset.height - height) * place // 2 for place in range(3)]
    lefts = [(dataset.width - width) * place // 2 for place in range(3)]
    read = [_read_window(dataset, number, top, left, height, width) for top in tops for left in lefts]
    return [window for window in read if window is not None]


def _read_window(dataset: Any, number: int, row: int, col: int, height: int, width: int) -> Pixels | None:
    """Return a window, or None where the file is damaged: only the tiles there are lost."""
    from rasterio.errors import RasterioError

    try:
        return np.asarray(dataset.read(number, window=((row, row + height), (col, col + width))))
    except RasterioError:
        return None
