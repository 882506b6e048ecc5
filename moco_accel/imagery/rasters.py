"""Windows of a scene's bands through rasterio, on one grid; never a whole scene in memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moco_accel.imagery.grids import Grid
from moco_accel.imagery.layouts import Layout, open_raster
from moco_accel.imagery.pictures import UnreadableImage

CACHE_MIB = 64  # GDAL's own default is a twentieth of all memory, in every process

Pixels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


@contextmanager
def gdal_settings() -> Iterator[None]:
    """A small cache, one thread, and no printing: what goes wrong is raised, counted and shown by us.

    Without rasterio nothing: pictures need none, and the first raster says what is missing.
    """
    try:
        import rasterio
    except ImportError:
        yield
        return
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MIB, GDAL_NUM_THREADS=1):
        yield


class RasterReader:
    """A scene's bands, opened; `read` takes windows of `grid`, by default the scene's own."""

    def __init__(self, layout: Layout, grid: Grid | None = None) -> None:
        self.layout, self.grid = layout, grid or layout.grid
        by_file: dict[Path, list[int]] = {}
        for position, (path, _) in enumerate(layout.sources):
            by_file.setdefault(path, []).append(position)
        self._files = [
            (OnGrid(path, self.grid, layout.nodata[positions[0]]), positions) for path, positions in by_file.items()
        ]

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Pixels, Mask | None]:
        """Pixels [bands, height, width] and where they hold data [height, width], None: everywhere.

        Float pixels without data become 0, for NaN means damage to whoever trains. Raises UnreadableImage.
        """
        pixels = np.empty((len(self.layout.sources), height, width), self.layout.dtype)
        valid: Mask | None = None
        for file, positions in self._files:
            numbers = [self.layout.sources[position][1] for position in positions]
            pixels[positions] = file.read(numbers, row, col, height, width)
            if self.layout.masked:
                shown = file.mask(row, col, height, width)
                valid = shown if valid is None else valid & shown
        valid = valid_pixels(self.layout, pixels, valid)
        if valid is not None and pixels.dtype.kind == "f":
            pixels[:, ~valid] = 0
        return pixels, valid

    def close(self) -> None:
        for file, _ in self._files:
            file.close()


class OnGrid:
    """One file read by windows of a grid: as it is where its pixels lie on the grid, else resampled."""

    def __init__(self, path: Path, grid: Grid, nodata: float | None = None, resampling: str = "bilinear") -> None:
        self._path, self._dataset = path, open_raster(path)
        self._offset = _offset(self._dataset, grid)
        if resampling == "nearest" and self._offset and not _covers(self._dataset, grid, self._offset):
            self._offset = None  # a label raster may end within a scene; windows of bands never leave their files
        self._warped = None if self._offset else self._warp(grid, nodata, resampling)

    def _warp(self, grid: Grid, nodata: float | None, resampling: str) -> Any:
        from rasterio.enums import Resampling
        from rasterio.transform import Affine
        from rasterio.vrt import WarpedVRT

        return WarpedVRT(
            self._dataset,
            crs=grid.crs,
            transform=Affine(*grid.transform),
            height=grid.height,
            width=grid.width,
            resampling=Resampling[resampling],
            src_nodata=nodata,
            nodata=nodata,
            add_alpha=nodata is None and resampling == "nearest",  # of labels, to know where there are none
        )

    def read(self, numbers: list[int], row: int, col: int, height: int, width: int) -> Pixels:
        """Bands by number [len(numbers), height, width]. Raises UnreadableImage."""
        return self._call("read", numbers, row, col, height, width)

    def mask(self, row: int, col: int, height: int, width: int) -> Mask:
        """Where the file has data [height, width]. Raises UnreadableImage."""
        return np.asarray(self._call("dataset_mask", None, row, col, height, width) > 0)

    def _call(self, method: str, numbers: list[int] | None, row: int, col: int, height: int, width: int) -> Pixels:
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        down, right = self._offset or (0, 0)
        window = Window(col + right, row + down, width, height)
        source = self._warped or self._dataset
        try:
            found = source.read(numbers, window=window) if numbers else source.dataset_mask(window=window)
        except RasterioError as error:
            raise UnreadableImage(f"is damaged ({' '.join(str(error).split())})") from None
        assert found.shape[-2:] == (height, width), (self._path, window)
        return np.asarray(found)

    def close(self) -> None:
        if self._warped:
            self._warped.close()
        self._dataset.close()


def _offset(dataset: Any, grid: Grid) -> tuple[int, int] | None:
    """Rows and columns from the grid's corner to the file's, when the file has the grid's pixels; else None."""
    if grid.crs is None:
        return 0, 0
    if dataset.crs is None or dataset.crs.to_string() != grid.crs:
        return None
    own, (a, b, c, d, e, f) = dataset.transform, grid.transform
    slack = abs(a) * 1e-6
    if any(abs(x - y) > slack for x, y in zip((own.a, own.b, own.d, own.e), (a, b, d, e), strict=True)):
        return None
    if (own.c, own.f) == (c, f):
        return 0, 0
    if b or d:
        return None
    right, down = (c - own.c) / a, (f - own.f) / e
    near = all(math.isclose(shift, round(shift), abs_tol=1e-3) for shift in (right, down))
    return (round(down), round(right)) if near else None


def _covers(dataset: Any, grid: Grid, offset: tuple[int, int]) -> bool:
    down, right = offset
    return min(offset) >= 0 and down + grid.height <= dataset.height and right + grid.width <= dataset.width


def valid_pixels(layout: Layout, pixels: Pixels, valid: Mask | None = None) -> Mask | None:
    """Where pixels [bands, height, width] hold data, `valid` given; None: everywhere.

    A pixel has no data when any band has its nodata number, or is NaN. In 8 bits, where that number is an ordinary
    one too, all bands must have it.
    """
    empty: Mask | None = None if valid is None else ~valid
    if layout.zeros:
        empty = _either(empty, (pixels == 0).all(axis=0))
    marked = [
        np.asarray(band == value) for band, value in zip(pixels, layout.nodata, strict=False) if value is not None
    ]
    if marked:
        agree = np.logical_and if pixels.dtype == np.uint8 else np.logical_or
        empty = _either(empty, np.asarray(agree.reduce(marked)))
    if pixels.dtype.kind == "f":
        empty = _either(empty, np.asarray(~np.isfinite(pixels).all(axis=0)))
    return None if empty is None or not empty.any() else ~empty


def _either(one: Mask | None, other: Mask) -> Mask:
    return other if one is None else one | other
