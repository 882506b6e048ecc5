"""Plan a build: select the scenes and their pairs, and split their windows into units of work."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moco_accel.imagery.labels import LabelClasses, check_label_coverage, folder_classes, raster_classes
from moco_accel.imagery.options import BuildOptions
from moco_accel.imagery.paired_seasons import are_single_files, pair_finder, select_paired_scenes
from moco_accel.imagery.scene_selection import LeftOut, describe_scenes, select_georeferenced, select_scenes
from moco_accel.imagery.windows import WindowBlock, scene_windows
from moco_accel.scenes.clouds import cloud_rule
from moco_accel.scenes.find_scenes import find_scenes
from moco_accel.scenes.layouts import LOWEST_FLOAT, Layout
from moco_accel.sources.tile_metadata import TileMetadata

_UNIT_BYTES = 32 << 20  # of tiles in one unit; a build needs a few times this per worker
_MAX_UNIT_TILES = 512


@dataclass(frozen=True)
class BuildPlan:
    """What a build does.

    Attributes:
        layouts: Scenes to cut, all with the same bands and dtype, in order.
        notes: Decisions that the user should know.
    """

    source: Path
    options: BuildOptions
    layouts: list[Layout]
    paired_scenes: list[Layout]
    classes: LabelClasses
    left_out: LeftOut
    notes: list[str]

    @property
    def metadata(self) -> TileMetadata:
        """Metadata of the tiles, without statistics."""
        sensors = {layout.scene.sensor for layout in self.layouts}
        first = self.layouts[0]
        sensor = sensors.pop() if len(sensors) == 1 else None
        return TileMetadata(list(first.bands), first.dtype, sensor, self._nodata())

    def _nodata(self) -> float | None:
        """Number that marks no data in all tiles; None if the scenes differ, but always a number for float32.

        Undeclared zeros of a satellite do not count: one band's 0 may be its darkest value.
        """
        is_float = self.layouts[0].dtype == "float32"
        scenes = (*self.layouts, *self.paired_scenes) if is_float else self.layouts
        values = {value for layout in scenes for value in layout.nodata or (None,)}
        value = values.pop() if len(values) == 1 else None
        if not is_float:
            return value
        return LOWEST_FLOAT if value is None or not math.isfinite(value) else float(np.float32(value))

    def units(self) -> Iterator[tuple[WindowBlock, ...]]:
        """Yield units of work for one worker each; they do not depend on the number of workers."""
        unit: list[WindowBlock] = []
        tiles = size = 0
        find_pairs = pair_finder(self.paired_scenes, are_single_files(self.source, self.options.pair_with))
        max_bytes = min(_UNIT_BYTES, (self.options.max_shard_mb << 20) // 4)
        for layout in self.layouts:
            windows = scene_windows(layout, self.options, find_pairs(layout))
            pixel_bytes = len(layout.bands) * np.dtype(layout.dtype).itemsize * (2 if self.paired_scenes else 1)
            tile_bytes = windows.height * windows.width * pixel_bytes
            for block in windows.split(max(1, min(_MAX_UNIT_TILES, max_bytes // tile_bytes))):
                if unit and (size + len(block) * tile_bytes > max_bytes or tiles + len(block) > _MAX_UNIT_TILES):
                    yield tuple(unit)
                    unit, tiles, size = [], 0, 0
                unit.append(block)
                tiles, size = tiles + len(block), size + len(block) * tile_bytes
        if unit:
            yield tuple(unit)

    def decisions(self) -> dict[str, str]:
        """Return what a resumed build must decide again: the classes, and a digest of the scenes and their rules."""
        fingerprints = "".join(map(_fingerprint, (*self.layouts, *self.paired_scenes)))
        digest = hashlib.sha256(fingerprints.encode()).hexdigest()
        return {"classes": ",".join(self.classes.names), "scenes": digest}


def make_plan(source: Path, options: BuildOptions, workers: int, on_scenes: Callable[[int, int], None]) -> BuildPlan:
    """Read the headers of all scenes, calling `on_scenes(done, total)` meanwhile, and plan the build.

    Raises:
        UserError: If no scene can be cut, labelled or paired as the options demand.
    """
    layouts, left_out, notes = select_scenes(source, options, workers, on_scenes)
    classes = LabelClasses()
    if options.labels_from_folders:
        classes = folder_classes(source, [layout.scene for layout in layouts])
    elif options.label_raster:
        classes = raster_classes(options.label_raster, options.class_names)
        layouts, without_crs = select_georeferenced(layouts)
        left_out += without_crs
        check_label_coverage(options.label_raster, [layout.grid for layout in layouts])
    paired_scenes: list[Layout] = []
    if options.pair_with:
        scenes = find_scenes(options.pair_with, "--pair-with").scenes
        described = describe_scenes(options.pair_with, scenes, options, workers, lambda done, total: None)
        ignore_names = are_single_files(source, options.pair_with)
        paired_scenes, note = select_paired_scenes(described, layouts, ignore_names)
        notes.append(note)
    return BuildPlan(source, options, layouts, paired_scenes, classes, left_out, notes)


def _fingerprint(layout: Layout) -> str:
    """Text that identifies a scene in decided.json; builds that began with another text cannot be resumed."""
    return repr((layout.scene.name, layout.key, layout.grid, layout.nodata, cloud_rule(layout)))
