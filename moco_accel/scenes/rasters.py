"""Windows of a scene: of its bands through rasterio, on one grid, never a whole scene in memory; or of a picture."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from moco_accel.common.pixels import Mask, Pixels, valid_pixels
from moco_accel.scenes.grids import Grid
from moco_accel.scenes.layouts import Layout, open_raster
from moco_accel.scenes.pictures import UnreadableImage, failures_of, read_picture

CACHE_MIB = 64  # GDAL's own default is a twentieth of all memory, in every process


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
    """A scene's bands, opened; `read` takes windows of `grid`, by default the scene's own.

    Pixels without data become `nodata` in all bands, or stay as they are when it is None.
    """

    def __init__(self, layout: Layout, grid: Grid | None = None, nodata: float | None = None) -> None:
        self.layout, self.grid, self._nodata = layout, grid or layout.grid, nodata
        by_file: dict[Path, list[int]] = {}
        for position, (path, _) in enumerate(layout.sources):
            by_file.setdefault(path, []).append(position)
        self._files: list[tuple[OnGrid, list[int]]] = []
        try:
            for path, positions in by_file.items():
                self._files.append((OnGrid(path, self.grid, layout.nodata[positions[0]]), positions))
        except UnreadableImage:
            self.close()
            raise

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Pixels, Mask | None]:
        """Pixels [bands, height, width] and where they hold data [height, width], None: everywhere.

        Raises UnreadableImage.
        """
        pixels = np.empty((len(self.layout.sources), height, width), self.layout.dtype)
        valid: Mask | None = None
        for file, positions in self._files:
            numbers = [self.layout.sources[position][1] for position in positions]
            pixels[positions] = file.read(numbers, row, col, height, width)
            if self.layout.masked:
                shown = file.mask(row, col, height, width)
                valid = shown if valid is None else valid & shown
        valid = where_valid(self.layout, pixels, valid)
        if valid is not None and self._nodata is not None:
            pixels[:, ~valid] = self._nodata
        return pixels, valid

    def close(self) -> None:
        for file, _ in self._files:
            file.close()


class PictureReader:
    """A picture, decoded whole."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        pixels, self._encoded = read_picture(layout.scene.files[0])
        if layout.picked != tuple(range(len(pixels))):
            pixels, self._encoded = pixels[list(layout.picked)], None
        self._pixels = pixels

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Pixels, Mask | None]:
        """As of a RasterReader."""
        pixels = self._pixels[:, row : row + height, col : col + width]
        return pixels, where_valid(self.layout, pixels)

    def encoded(self, height: int, width: int) -> bytes | None:
        """The file's bytes, when a tile is the whole picture."""
        return self._encoded if self._pixels.shape[1:] == (height, width) else None

    def close(self) -> None:
        pass


class OnGrid:
    """One file read by windows of a grid: as it is where its pixels lie on the grid, else resampled."""

    def __init__(self, path: Path, grid: Grid, nodata: float | None = None, resampling: str = "bilinear") -> None:
        self._path, self._dataset = path, open_raster(path)
        self._transforms, self._is_labels = (self._dataset.transform, grid.transform), resampling == "nearest"
        self._warped: Any = None
        try:
            with failures_of(path):
                self._offset = _offset(self._dataset, grid)
                if self._is_labels and self._offset and not _covers(self._dataset, grid, self._offset):
                    self._offset = None  # labels may end within a scene; windows of bands never leave their files
                self._warped = None if self._offset else self._warp(grid, nodata, resampling)
        except UnreadableImage:
            self._dataset.close()
            raise

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
            add_alpha=self._is_labels,  # to know where there are none; bands may have an alpha of their own
        )

    def read(self, numbers: list[int], row: int, col: int, height: int, width: int) -> Pixels:
        """Bands by number [len(numbers), height, width]. Raises UnreadableImage."""
        with failures_of(self._path):
            found = np.asarray(
                (self._warped or self._dataset).read(numbers, window=self._window(row, col, height, width))
            )
        assert found.shape[-2:] == (height, width), (self._path, row, col)
        return found

    def mask(self, row: int, col: int, height: int, width: int) -> Mask:
        """Where the file has data [height, width]. Raises UnreadableImage."""
        with failures_of(self._path):
            if self._warped and not self._is_labels:
                return self._nearest_mask(row, col, height, width)
            source = self._warped or self._dataset
            return np.asarray(source.dataset_mask(window=self._window(row, col, height, width)) > 0)

    def _window(self, row: int, col: int, height: int, width: int) -> Any:
        from rasterio.windows import Window

        down, right = self._offset or (0, 0)
        return Window(col + right, row + down, width, height)

    def _nearest_mask(self, row: int, col: int, height: int, width: int) -> Mask:
        """The file's own mask at the centres of the grid's pixels: GDAL's warped files have lost it."""
        from rasterio.windows import Window

        own, grid = (np.array([*list(affine)[:6], 0, 0, 1]).reshape(3, 3) for affine in self._transforms)
        (a, b, c), (d, e, f), _ = np.linalg.solve(own, grid)  # from (col, row) of the grid to those of the file
        x, y = np.arange(col, col + width) + 0.5, np.arange(row, row + height)[:, None] + 0.5
        cols, rows = np.floor(a * x + b * y + c).astype(int), np.floor(d * x + e * y + f).astype(int)
        inside = (cols >= 0) & (cols < self._dataset.width) & (rows >= 0) & (rows < self._dataset.height)
        if not inside.any():
            return np.asarray(inside)
        left, right, top, bottom = cols[inside].min(), cols[inside].max(), rows[inside].min(), rows[inside].max()
        shown = self._dataset.dataset_mask(window=Window(left, top, right - left + 1, bottom - top + 1)) > 0
        return np.asarray(inside & shown[rows.clip(top, bottom) - top, cols.clip(left, right) - left])

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


def where_valid(layout: Layout, pixels: Pixels, shown: Mask | None = None) -> Mask | None:
    """Where pixels [bands, height, width] hold data: `valid_pixels`, and where `shown`, the files' masks, says so.

    None: everywhere.
    """
    zeros = pixels.any(axis=0) if layout.zeros else None
    masks = [mask for mask in (valid_pixels(pixels, layout.nodata or None), shown, zeros) if mask is not None]
    valid = np.logical_and.reduce(masks) if masks else None
    return None if valid is None or valid.all() else np.asarray(valid)
