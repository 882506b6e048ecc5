"""Plan a build: select the scenes and their pairs, and split their windows into units of work."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moco_accel.imagery.labels import LabelClasses, check_label_coverage, folder_classes, raster_classes
from moco_accel.imagery.options import BuildOptions
from moco_accel.imagery.paired_seasons import are_single_files, pair_finder, select_paired_scenes
from moco_accel.imagery.scene_selection import LeftOut, describe_scenes, select_georeferenced, select_scenes
from moco_accel.imagery.windows import WindowBlock, scene_windows
from moco_accel.scenes.begun_scenes import CHANGED, BegunScenes, begun_scenes
from moco_accel.scenes.clouds import cloud_rule
from moco_accel.scenes.find_scenes import find_scenes
from moco_accel.scenes.layouts import LOWEST_FLOAT, Layout
from moco_accel.scenes.nodata import choose_nodata, declare_nodata, nodata_notes
from moco_accel.sources.tile_metadata import TileMetadata

_UNIT_BYTES = 32 << 20  # of tiles in one unit; a build needs a few times this per worker
_MAX_UNIT_TILES = 512


@dataclass(frozen=True)
class BuildPlan:
    """What a build does.

    Attributes:
        layouts: Scenes to cut, all with the same bands and dtype, in order.
        notes: Decisions that the user should know.
        nodata: The number that marks no data in all tiles; None if nothing does.
    """

    source: Path
    options: BuildOptions
    layouts: list[Layout]
    paired_scenes: list[Layout]
    classes: LabelClasses
    left_out: LeftOut
    notes: list[str]
    nodata: float | None = None

    @property
    def metadata(self) -> TileMetadata:
        """Metadata of the tiles, without statistics."""
        sensors = {layout.scene.sensor for layout in self.layouts}
        first = self.layouts[0]
        sensor = sensors.pop() if len(sensors) == 1 else None
        return TileMetadata(list(first.bands), first.dtype, sensor, self.nodata)

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

    def begun(self) -> BegunScenes:
        """Return what a resumed build needs to know of the scenes."""
        root = self.source if self.source.is_dir() else self.source.parent
        return begun_scenes(root, self.layouts, self.nodata, self.classes.names, self.classes.values)

    def decisions(self) -> dict[str, str]:
        """Return what a resumed build must decide again: the classes, and a digest of the scenes and their rules."""
        fingerprints = "".join(map(_fingerprint, (*self.layouts, *self.paired_scenes)))
        if (nodata := self.metadata.nodata) != _earlier_nodata(self.layouts, self.paired_scenes):
            fingerprints += repr(nodata)
        digest = hashlib.sha256(fingerprints.encode()).hexdigest()
        return {"classes": ",".join(self.classes.names), "scenes": digest}


def make_plan(
    source: Path,
    options: BuildOptions,
    workers: int,
    on_scenes: Callable[[int, int], None],
    begun: BegunScenes | None = None,
    next_unit: int = 0,
) -> BuildPlan:
    """Read the headers of all scenes, calling `on_scenes(done, total)` meanwhile, and plan the build.

    Args:
        begun: The scenes of an interrupted build, which continues at unit `next_unit`; those that changed are left out.

    Raises:
        UserError: If no scene can be cut, labelled or paired as the options demand.
    """
    layouts, left_out, notes = select_scenes(source, options, workers, on_scenes, begun)
    classes = LabelClasses()
    if options.labels_from_folders:
        classes = folder_classes(source, [layout.scene for layout in layouts])
    elif options.label_raster:
        classes = raster_classes(options.label_raster, options.class_names)
        if classes.absent:
            numbers = ", ".join(map(str, classes.absent))
            notes.append(f"--label-raster={options.label_raster} nowhere holds {numbers}, which --class-names names")
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
    nodata = begun.nodata if begun else choose_nodata(layouts, paired_scenes)
    declared = declare_nodata(layouts, nodata)
    notes += nodata_notes(layouts, declared, nodata)
    layouts, paired_scenes = declared, declare_nodata(paired_scenes, nodata) if paired_scenes else []
    if begun:
        classes = LabelClasses(tuple(begun.class_names), tuple(begun.class_values))
        layouts = begun.in_order(source if source.is_dir() else source.parent, layouts)
    plan = BuildPlan(source, options, layouts, paired_scenes, classes, left_out, notes, nodata)
    return replace(plan, left_out=[*left_out, *_changed(plan, next_unit)]) if begun else plan


def _changed(plan: BuildPlan, next_unit: int) -> LeftOut:
    """Return the scenes that are gone and have windows from `next_unit` on."""
    if not any(layout.is_gone for layout in plan.layouts):
        return []
    rest = itertools.islice(plan.units(), next_unit, None)
    gone = dict.fromkeys(block.layout for unit in rest for block in unit if block.layout.is_gone)
    listed = {file for file, _ in plan.left_out}  # as damaged
    files = (str(layout.scene.files[0]) for layout in gone)
    return [(file, f"{CHANGED}; its remaining tiles are left out") for file in files if file not in listed]


def _earlier_nodata(layouts: Sequence[Layout], paired_scenes: Sequence[Layout]) -> float | None:
    """Return the number that earlier versions chose: builds that they began may be resumed if it is still chosen."""
    is_float = layouts[0].dtype == "float32"
    scenes = (*layouts, *paired_scenes) if is_float else layouts
    values = {value for layout in scenes for value in layout.nodata or (None,)}
    value = values.pop() if len(values) == 1 else None
    if not is_float:
        return value
    return LOWEST_FLOAT if value is None or not abs(value) <= -LOWEST_FLOAT else float(np.float32(value))


def _fingerprint(layout: Layout) -> str:
    """Text that identifies a scene in decided.json; builds that began with another text cannot be resumed."""
    return repr((layout.scene.name, layout.key, layout.grid, layout.nodata, cloud_rule(layout)))
