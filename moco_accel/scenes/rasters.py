"""Read windows of a scene on one grid: of its bands with rasterio, or of a decoded picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from moco_accel.common.pixels import Mask, Pixels, valid_pixels
from moco_accel.images.gdal import has_mask, is_white_zero, to_brightness
from moco_accel.scenes.grids import Grid
from moco_accel.scenes.image_files import UnreadableImage, as_unreadable, open_raster, read_picture
from moco_accel.scenes.layouts import Layout
from moco_accel.scenes.nodata import put_nodata
from moco_accel.scenes.pixel_types import cast_pixels


class RasterReader:
    """Reader of a scene's bands; it holds only the requested windows in memory.

    Args:
        grid: The grid of the windows.
        nodata: The number that replaces pixels without data, in all bands; None keeps them. In 8 bits, those that a
            mask or alpha hides become 0, and the others keep their number.
    """

    def __init__(self, layout: Layout, grid: Grid, nodata: float | None) -> None:
        self.layout, self._nodata = layout, nodata
        by_file: dict[Path, list[int]] = {}
        for position, (path, _) in enumerate(layout.sources):
            by_file.setdefault(path, []).append(position)
        self._files: list[tuple[AlignedRaster, list[int]]] = []
        try:
            for path, positions in by_file.items():
                file = AlignedRaster(path, grid, layout.nodata[positions[0]], has_alpha=layout.alpha)
                self._files.append((file, positions))
        except UnreadableImage:
            self.close()
            raise

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Pixels, Mask | None]:
        """Read a window.

        Returns:
            Pixels [bands, height, width], and a mask [height, width] that is False for nodata, or None if none is.

        Raises:
            UnreadableImage: If the file is damaged there, or holds values that the type of the tiles cannot hold.
        """
        pixels = np.empty((len(self.layout.sources), height, width), self.layout.stored_dtype or self.layout.dtype)
        shown: Mask | None = None
        for file, positions in self._files:
            numbers = [self.layout.sources[position][1] for position in positions]
            pixels[positions] = file.read(numbers, row, col, height, width)
            if self.layout.has_mask:
                file_mask = file.mask(row, col, height, width)
                shown = file_mask if shown is None else shown & file_mask
        valid = _valid_mask(self.layout, pixels, shown)
        if self.layout.stored_dtype:
            pixels = cast_pixels(pixels, self.layout.dtype, valid)
        if self.layout.dtype == "uint8":  # as in place, numbers mark nothing there, and what is hidden is 0
            if shown is not None:
                pixels[:, ~shown] = 0
        elif self._nodata is not None:
            put_nodata(self.layout, pixels, valid, self._nodata)
        return pixels, valid

    def close(self) -> None:
        for file, _ in self._files:
            file.close()


class PictureReader:
    """Reader of a picture, which is decoded whole."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        pixels, self._valid, self._encoded = read_picture(layout.scene.files[0])
        if layout.selected != tuple(range(len(pixels))):
            pixels, self._encoded = pixels[list(layout.selected)], None
        self._pixels = pixels

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Pixels, Mask | None]:
        """Read a window as `RasterReader.read` does."""
        window = np.s_[..., row : row + height, col : col + width]
        pixels = self._pixels[window]
        return pixels, _valid_mask(self.layout, pixels, None if self._valid is None else self._valid[window])

    def encoded(self, height: int, width: int) -> bytes | None:
        """Return the file's bytes if a tile of this size is the whole picture, else None."""
        return self._encoded if self._pixels.shape[1:] == (height, width) else None

    def close(self) -> None:
        pass


class AlignedRaster:
    """One file read on a grid: unchanged where its pixels lie on the grid, else resampled.

    Args:
        nodata: The file's number for nodata, as `read` returns it.
        is_labels: Resample by nearest neighbour, not bilinearly.
        has_alpha: The last band is alpha, and hides pixels where it is 0.
    """

    def __init__(
        self, path: Path, grid: Grid, nodata: float | None = None, is_labels: bool = False, has_alpha: bool = False
    ) -> None:
        self._path, self._grid, self._is_labels, self._has_alpha = path, grid, is_labels, has_alpha
        self._dataset = open_raster(path)
        try:
            with as_unreadable(path):
                if nodata is not None and not is_labels and is_white_zero(self._dataset):
                    nodata = float(to_brightness(self._dataset, np.asarray(nodata)))  # as stored
                self._offset = _offset(self._dataset, grid)
                if is_labels and self._offset and not _covers(self._dataset, grid, self._offset):
                    self._offset = None  # unlike bands, labels may end within a scene
                self._warped = None if self._offset else self._warp(nodata)
        except UnreadableImage:
            self._dataset.close()
            raise

    def _warp(self, nodata: float | None) -> Any:
        from rasterio.enums import Resampling
        from rasterio.transform import Affine
        from rasterio.vrt import WarpedVRT

        return WarpedVRT(
            self._dataset,
            crs=self._grid.crs,
            transform=Affine(*self._grid.transform),
            height=self._grid.height,
            width=self._grid.width,
            resampling=Resampling.nearest if self._is_labels else Resampling.bilinear,
            src_nodata=nodata,
            nodata=nodata,
            add_alpha=self._is_labels,  # marks where there are none; bands may have an alpha of their own
        )

    def read(self, numbers: list[int], row: int, col: int, height: int, width: int) -> Pixels:
        """Read bands by number as [len(numbers), height, width]; white-is-zero is inverted. Raises UnreadableImage."""
        with as_unreadable(self._path):
            source = self._warped or self._dataset
            found = np.asarray(source.read(numbers, window=self._window(row, col, height, width)))
        assert found.shape[-2:] == (height, width), (self._path, row, col)
        return found if self._is_labels else to_brightness(self._dataset, found)

    def mask(self, row: int, col: int, height: int, width: int) -> Mask:
        """Return a mask [height, width] that is True where the file has data. Raises UnreadableImage."""
        with as_unreadable(self._path):
            if self._warped and not self._is_labels:
                return self._nearest_mask(row, col, height, width)
            window = self._window(row, col, height, width)
            if self._warped:
                return np.asarray(self._warped.dataset_mask(window=window) > 0)
            return self._stored_mask(window)

    def _stored_mask(self, window: Any) -> Mask:
        """Return the file's own mask on its own grid; GDAL forgets the alpha of files that also declare a number."""
        if not self._has_alpha:
            return np.asarray(self._dataset.dataset_mask(window=window) > 0)
        shown = np.asarray(self._dataset.read(self._dataset.count, window=window) > 0)
        if has_mask(self._dataset):
            shown &= self._dataset.dataset_mask(window=window) > 0
        return shown

    def _window(self, row: int, col: int, height: int, width: int) -> Any:
        from rasterio.windows import Window

        down, right = self._offset or (0, 0)
        return Window(col + right, row + down, width, height)

    def _nearest_mask(self, row: int, col: int, height: int, width: int) -> Mask:
        """Return the file's own mask at the centres of the grid's pixels; GDAL's warped files lose it."""
        transforms = self._dataset.transform, self._grid.transform
        own, grid = (np.array([*list(affine)[:6], 0, 0, 1]).reshape(3, 3) for affine in transforms)
        (a, b, c), (d, e, f), _ = np.linalg.solve(own, grid)  # from (col, row) of the grid to (col, row) of the file
        x, y = np.arange(col, col + width) + 0.5, np.arange(row, row + height)[:, None] + 0.5
        cols, rows = np.floor(a * x + b * y + c).astype(int), np.floor(d * x + e * y + f).astype(int)
        inside = (cols >= 0) & (cols < self._dataset.width) & (rows >= 0) & (rows < self._dataset.height)
        if not inside.any():
            return np.asarray(inside)
        left, right, top, bottom = cols[inside].min(), cols[inside].max(), rows[inside].min(), rows[inside].max()
        file_mask = self._stored_mask(((top, bottom + 1), (left, right + 1)))
        return np.asarray(inside & file_mask[rows.clip(top, bottom) - top, cols.clip(left, right) - left])

    def close(self) -> None:
        if self._warped:
            self._warped.close()
        self._dataset.close()


def _offset(dataset: Any, grid: Grid) -> tuple[int, int] | None:
    """Return the grid's corner as (row, col) of the file, or None if the file has other pixels."""
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


def _valid_mask(layout: Layout, pixels: Pixels, file_mask: Mask | None = None) -> Mask | None:
    """Return a mask [height, width] that is False for nodata, by value and `file_mask`; None if there is none."""
    zeros = pixels.any(axis=0) if layout.zero_is_nodata else None
    masks = [mask for mask in (valid_pixels(pixels, layout.nodata or None), file_mask, zeros) if mask is not None]
    valid = np.logical_and.reduce(masks) if masks else None
    return None if valid is None or valid.all() else np.asarray(valid)
