"""Pixel grids on Earth: of one scene, and the common grid of bands with different pixel sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moco_accel.scenes.image_files import UnreadableImage

Affine = tuple[float, float, float, float, float, float]  # x = a·col + b·row + c, y = d·col + e·row + f


@dataclass(frozen=True)
class Grid:
    """A pixel grid.

    Attributes:
        crs: EPSG:32618 or WKT; None if the position is unknown.
        transform: From (col, row) to coordinates.
    """

    height: int
    width: int
    crs: str | None = None
    transform: Affine = (1, 0, 0, 0, 1, 0)

    def bounds(self, row: int, col: int, height: int, width: int) -> tuple[float, float, float, float]:
        """Return left, bottom, right and top of a window, in units of the CRS."""
        a, b, c, d, e, f = self.transform
        corners = [(x, y) for x in (col, col + width) for y in (row, row + height)]
        xs, ys = [a * x + b * y + c for x, y in corners], [d * x + e * y + f for x, y in corners]
        return min(xs), min(ys), max(xs), max(ys)


def bounds_overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Check whether two (left, bottom, right, top) share an area; rows of a file may run to the north."""
    (left, low, right, high), (west, south, east, north) = one, other
    return west < right and left < east and min(south, north) < max(low, high) and min(low, high) < max(south, north)


def format_bounds(bounds: Sequence[float], crs: str | None) -> str:
    """Return `x 500000 to 503200, y 3993600 to 4000000 (EPSG:32618)`; WKT is shortened to its name."""
    left, bottom, right, top = (f"{round(edge, 4):.10g}" for edge in bounds)
    name = crs if crs is None or "[" not in crs else crs.split('"')[1]
    return f"x {left} to {right}, y {bottom} to {top} ({name})"


def common_grid(datasets: Sequence[Any]) -> tuple[Grid, list[bool]]:
    """Compute the grid of the finest band, cropped to the area that all bands cover.

    Returns:
        The grid, and for each dataset whether its pixels are coarser.

    Raises:
        UnreadableImage: If no grid fits all bands.
    """
    finest = min(datasets, key=lambda dataset: abs(dataset.transform.a))
    a, b, c, d, e, f = tuple(finest.transform)[:6]
    if any(dataset.crs != finest.crs for dataset in datasets):
        raise UnreadableImage("has bands in different coordinate systems")
    if finest.crs is None:
        if len({dataset.shape for dataset in datasets}) > 1:
            raise UnreadableImage("has bands of different sizes and no position on Earth to align them by")
        return Grid(finest.height, finest.width), [False] * len(datasets)
    if any(dataset.transform.b or dataset.transform.d for dataset in datasets):
        if len({(dataset.shape, dataset.transform) for dataset in datasets}) > 1:
            raise UnreadableImage("has rotated bands of different grids; warp them to one grid first")
        return Grid(finest.height, finest.width, finest.crs.to_string(), (a, b, c, d, e, f)), [False] * len(datasets)
    edges = np.array([dataset.bounds for dataset in datasets])
    left, right = max(edges[:, 0]), min(edges[:, 2])
    bottom, top = max(np.minimum(edges[:, 1], edges[:, 3])), min(np.maximum(edges[:, 1], edges[:, 3]))
    # whole pixels of the finest band; a millionth of a pixel allows for rounding in the bounds
    cols = np.ceil((left - c) / a - 1e-6), np.floor((right - c) / a + 1e-6)
    rows = np.ceil(min((top - f) / e, (bottom - f) / e) - 1e-6), np.floor(max((top - f) / e, (bottom - f) / e) + 1e-6)
    height, width = int(rows[1] - rows[0]), int(cols[1] - cols[0])
    if height < 1 or width < 1:
        raise UnreadableImage("has bands that do not overlap")
    transform: Affine = (a, b, c + a * float(cols[0]), d, e, f + e * float(rows[0]))
    coarse = [abs(dataset.transform.a) > abs(a) * 1.001 for dataset in datasets]
    return Grid(height, width, finest.crs.to_string(), transform), coarse
