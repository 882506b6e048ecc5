"""Label tiles with the name of their folder, or with the majority class of a label raster."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.imagery.windows import SkippedWindow, Window
from moco_accel.scenes.find_scenes import Scene
from moco_accel.scenes.grids import Grid, bounds_overlap, format_bounds
from moco_accel.scenes.image_files import UnreadableImage, open_raster
from moco_accel.scenes.rasters import AlignedRaster

# why a window has no label; build.json keeps these texts
NO_LABEL, UNCLEAR = "no label there", "no clear label"
UNNAMED = ", not in --class-names"  # follows the class

_MAX_CLASSES = 256
_SCAN_ROWS = 256
_MAX_SHOWN = 12  # classes in an error


@dataclass(frozen=True)
class LabelClasses:
    """Class names by label number.

    Attributes:
        values: The label raster's value of each class; empty for folders.
        absent: Those of them that the raster does not hold.
    """

    names: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()


def folder_classes(source: Path, scenes: list[Scene]) -> LabelClasses:
    """Return the names of the folders directly under `source`, sorted.

    Raises:
        UserError: If a scene is not in such a folder.
    """
    for path in (scene.files[0] for scene in scenes):
        if not source.is_dir() or path.parent == source:
            raise UserError(f"--labels-from-folders: {path} is not in a class folder; {source}/forest/… works")
    return LabelClasses(tuple(sorted({class_folder(source, scene) for scene in scenes})))


def class_folder(source: Path, scene: Scene) -> str:
    """Return the name of the scene's folder directly under `source`."""
    return scene.files[0].relative_to(source).parts[0]


def raster_classes(path: Path, class_names: str | None) -> LabelClasses:
    """Return the classes of a label raster.

    Args:
        class_names: `sea,land` for 0 and 1, or `10=forest,80=water`; None: every value in the raster is a class.

    Raises:
        UserError: If the raster does not hold class numbers, or `class_names` is not a list of distinct classes.
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
                f"--label-raster={path} {found}; a georeferenced GeoTIFF of one band of class numbers (uint8) works"
            )
        if class_names:
            return _named_classes(path, dataset, class_names)
        values = sorted(_scan(dataset))
        if len(values) > _MAX_CLASSES:
            raise UserError(
                f"--label-raster={path} has over {_MAX_CLASSES} classes; name those to use: --class-names 1=sea"
            )
    return LabelClasses(tuple(map(str, values)), tuple(values))


def _scan(dataset: Any, until: Collection[int] | None = None) -> set[int]:
    """Return the values of a raster with data, up to `_MAX_CLASSES` + 1; or stop once all of `until` were found."""
    from rasterio.errors import RasterioError

    values: set[int] = set()
    for top in range(0, dataset.height, _SCAN_ROWS):
        rows = ((top, min(top + _SCAN_ROWS, dataset.height)), (0, dataset.width))
        with suppress(RasterioError):  # tiles there are skipped as damaged
            values |= set(np.unique(dataset.read(1, window=rows, masked=True).compressed()).tolist())
        if (until is None and len(values) > _MAX_CLASSES) or (until is not None and values >= set(until)):
            break
    return values


def _named_classes(path: Path, dataset: Any, class_names: str) -> LabelClasses:
    """Return the classes of --class-names.

    Raises:
        UserError: If the raster holds none of the numbers; or other values than 0, 1, … for names without numbers.
    """
    classes = _parse_class_names(class_names)
    has_numbers = "=" in class_names
    values = _scan(dataset, classes.values if has_numbers else None)
    absent = tuple(value for value in classes.values if value not in values)
    if not values or (has_numbers and len(absent) < len(classes.values)) or values == set(classes.values):
        return replace(classes, absent=absent if values else ())
    found = sorted(values)
    is_one_to_one = len(found) == len(classes.names)
    names = classes.names if is_one_to_one else [f"class{value}" for value in found[:_MAX_SHOWN]]
    works = ",".join(f"{value}={name}" for value, name in zip(found, names, strict=False))
    more = ", …" if len(found) > _MAX_SHOWN else ""
    raise UserError(
        f"--class-names={class_names} {'names' if has_numbers else 'stands for'} "
        f"{', '.join(map(str, classes.values))}, but --label-raster={path} holds "
        f"{', '.join(map(str, found[:_MAX_SHOWN]))}{more}; --class-names {works} works"
    )


def check_label_coverage(path: Path, grids: Sequence[Grid]) -> None:
    """Raise UserError if a label raster overlaps no scene."""
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_bounds

    with open_raster(path) as dataset:
        crs, raster_bounds = dataset.crs.to_string(), tuple(dataset.bounds)
    scenes = []
    for grid in grids:
        bounds = grid.bounds(0, 0, grid.height, grid.width)
        try:
            moved = bounds if grid.crs == crs else transform_bounds(grid.crs, crs, *bounds)
        except RasterioError:
            return  # only reading can decide
        if bounds_overlap(moved, raster_bounds):
            return
        converted = "" if grid.crs == crs else f", that is {format_bounds(moved, crs)}"
        scenes.append(format_bounds(bounds, grid.crs) + converted)
    raise UserError(
        f"--label-raster={path} covers none of the {len(grids)} scenes: it spans {format_bounds(raster_bounds, crs)}, "
        f"the first scene {scenes[0]}; a raster of the same place works"
    )


def _parse_class_names(text: str) -> LabelClasses:
    """Parse `sea,land` or `10=forest,80=water`."""
    entries = [entry.strip() for entry in text.split(",")]
    numbered = [entry.partition("=") for entry in entries]
    try:
        pairs = [(int(number), name.strip()) for number, _, name in numbered if _] or list(enumerate(entries))
    except ValueError:
        pairs = []
    names = [name for _, name in pairs]
    if len(pairs) != len(entries) or len(set(names)) < len(names) or len(dict(pairs)) < len(pairs) or not all(names):
        raise UserError(f"--class-names={text!r} does not list distinct classes; sea,land or 10=forest,80=water works")
    pairs.sort()
    return LabelClasses(tuple(name for _, name in pairs), tuple(number for number, _ in pairs))


class LabelReader:
    """The label raster on a scene's grid, nearest neighbour."""

    def __init__(self, path: Path, classes: LabelClasses, grid: Grid) -> None:
        self.grid, self._values = grid, np.array(classes.values, np.int64)
        with open_raster(path) as dataset:
            self._nodata = dataset.nodata
        self._raster = AlignedRaster(path, grid, is_labels=True)

    def label(self, window: Window, min_majority: float) -> int:
        """Return the class that covers at least `min_majority` of a window.

        Raises:
            SkippedWindow: If there is none.
            UnreadableImage: If the raster is damaged.
        """
        found = self._raster.read([1], *window)[0].astype(np.int64)
        with_data = found[self._raster.mask(*window) & (found != self._nodata)]
        if not with_data.size:
            raise SkippedWindow(NO_LABEL)
        named = np.isin(with_data, self._values)
        for pixels, is_named in ((with_data[named], True), (with_data[~named], False)):
            values, counts = np.unique(pixels, return_counts=True)
            if pixels.size and counts.max() >= min_majority * found.size:
                value = int(values[counts.argmax()])
                if not is_named:
                    raise SkippedWindow(f"class {value}{UNNAMED}")
                return int(np.searchsorted(self._values, value))
        raise SkippedWindow(UNCLEAR)

    def close(self) -> None:
        self._raster.close()
