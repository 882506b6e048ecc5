"""A label for each tile: its folder's name, or the majority class of a label raster within it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.scenes.grids import Grid, overlap, place
from moco_accel.scenes.layouts import open_raster
from moco_accel.scenes.pictures import UnreadableImage
from moco_accel.scenes.rasters import OnGrid
from moco_accel.scenes.scenes import Scene

# why a window has no label
NO_LABEL, UNCLEAR = "no label there", "no clear label"
UNNAMED = ", not in --class-names"  # after the class

_MAX_CLASSES = 256
_SCAN_ROWS = 256


@dataclass(frozen=True)
class Classes:
    """Class names by label number; `values` are the label raster's numbers of them, none for folders."""

    names: tuple[str, ...] = ()
    values: tuple[int, ...] = ()


def folder_classes(source: Path, scenes: list[Scene]) -> Classes:
    """Names of the folders directly under `source`, sorted. Raises UserError when a scene lies outside of them."""
    for scene in scenes:
        if not source.is_dir() or scene.files[0].parent == source:
            path = scene.files[0]
            raise UserError(f"--labels-from-folders: {path} lies in no class folder; {source}/forest/… works")
    return Classes(tuple(sorted({folder_of(source, scene) for scene in scenes})))


def folder_of(source: Path, scene: Scene) -> str:
    return scene.files[0].relative_to(source).parts[0]


def raster_classes(path: Path, class_names: str | None) -> Classes:
    """As `class_names` says (`sea,land` for 0 and 1, or `10=forest,80=water`), else every number in the raster.

    Raises UserError for a raster that holds no classes or a list that makes no sense.
    """
    try:
        dataset = open_raster(path)
    except UnreadableImage as reason:
        raise UserError(f"--label-raster={path} {reason}; a GeoTIFF of one band of class numbers works") from None
    with dataset:
        dtype = dataset.dtypes[0]
        if np.dtype(dtype).kind not in "ui" or dataset.count != 1 or dataset.crs is None:
            found = "has no coordinate system" if dataset.crs is None else f"has {dataset.count} × {dtype}"
            raise UserError(
                f"--label-raster={path} {found}; a GeoTIFF of one band of class numbers (uint8) on Earth works"
            )
        if class_names:
            return _parse(class_names)
        values: set[int] = set()
        for top in range(0, dataset.height, _SCAN_ROWS):
            rows = ((top, min(top + _SCAN_ROWS, dataset.height)), (0, dataset.width))
            values |= set(np.unique(dataset.read(1, window=rows)).tolist())
            if len(values) > _MAX_CLASSES:
                raise UserError(
                    f"--label-raster={path} has over {_MAX_CLASSES} classes; name yours: --class-names 1=sea"
                )
        values -= {dataset.nodata}
    return Classes(tuple(str(value) for value in sorted(values)), tuple(sorted(values)))


def check_covered(path: Path, grids: Sequence[Grid]) -> None:
    """Raises UserError when a label raster lies beside every scene."""
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_bounds

    with open_raster(path) as dataset:
        crs, own = dataset.crs.to_string(), tuple(dataset.bounds)
    first = ""
    for grid in grids:
        bounds = grid.bounds(0, 0, grid.height, grid.width)
        try:
            moved = bounds if grid.crs == crs else transform_bounds(grid.crs, crs, *bounds)
        except RasterioError:
            return  # a place that only the reader can tell
        if overlap(moved, own):
            return
        first = first or f"{place(bounds, grid.crs)}{f', there {place(moved, crs)}' * (grid.crs != crs)}"
    raise UserError(
        f"--label-raster={path} covers none of the {len(grids)} scenes: it spans {place(own, crs)}, the first scene "
        f"{first}; a raster of the same place works"
    )


def _parse(text: str) -> Classes:
    """`sea,land` or `10=forest,80=water`."""
    entries = [entry.strip() for entry in text.split(",")]
    numbered = [entry.partition("=") for entry in entries]
    try:
        pairs = [(int(number), name.strip()) for number, _, name in numbered if _] or list(enumerate(entries))
    except ValueError:
        pairs = []
    names = [name for _, name in pairs]
    if len(pairs) != len(entries) or len(set(names)) < len(names) or len(dict(pairs)) < len(pairs) or not all(names):
        raise UserError(f"--class-names={text!r} is no list of distinct classes; sea,land or 10=forest,80=water works")
    pairs.sort()
    return Classes(tuple(name for _, name in pairs), tuple(number for number, _ in pairs))


class LabelReader:
    """The label raster on a scene's grid, nearest neighbour."""

    def __init__(self, path: Path, classes: Classes, grid: Grid) -> None:
        self._values = np.array(classes.values, np.int64)
        with open_raster(path) as dataset:
            self._nodata = dataset.nodata
        self._file = OnGrid(path, grid, None, "nearest")

    def label(self, row: int, col: int, height: int, width: int, min_majority: float) -> int | str:
        """The class that covers at least `min_majority` of a window, else why there is none. Raises UnreadableImage."""
        found = self._file.read([1], row, col, height, width)[0].astype(np.int64)
        numbers = found[self._file.mask(row, col, height, width) & (found != self._nodata)]
        if not numbers.size:
            return NO_LABEL
        named = np.isin(numbers, self._values)
        for some, is_named in ((numbers[named], True), (numbers[~named], False)):
            values, times = np.unique(some, return_counts=True)
            if some.size and times.max() >= min_majority * found.size:
                value = int(values[times.argmax()])
                return int(np.searchsorted(self._values, value)) if is_named else f"class {value}{UNNAMED}"
        return UNCLEAR

    def close(self) -> None:
        self._file.close()
