"""What a build is going to do: which scenes go together, the jobs they are cut in, and what the user should know."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from moco_accel.imagery.clouds import OFFSET_BASELINE, cloud_rule
from moco_accel.imagery.cutting import Job, window_shape
from moco_accel.imagery.labels import Classes, folder_classes, raster_classes
from moco_accel.imagery.layouts import Layout, NotBandFiles, describe
from moco_accel.imagery.options import Options
from moco_accel.imagery.pairs import Described, partner_finder, same_bands
from moco_accel.imagery.pictures import UnreadableImage
from moco_accel.imagery.scenes import Scene, find_scenes, single_file
from moco_accel.imagery.workers import in_order
from moco_accel.recipe_text import RecipeError
from moco_accel.tile_facts import TileFacts

_UNIT_BYTES = 32 << 20  # of tiles that one worker cuts at once; what a build needs per core is a few times this
_MAX_UNIT_TILES = 512
_SCENES_AT_ONCE = 32
_FEW_SCENES = 256  # described by one process: sooner than others could start

OnScenes = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """Scenes of one kind, in order; `left_out` are (file, reason); `notes` say what was decided for the user."""

    source: Path
    options: Options
    layouts: list[Layout]
    partners: list[Layout]
    classes: Classes
    left_out: list[tuple[str, str]]
    notes: list[str]

    @property
    def facts(self) -> TileFacts:
        """All but the statistics."""
        sensors = {layout.scene.sensor for layout in self.layouts}
        first = self.layouts[0]
        return TileFacts(list(first.bands), first.dtype, sensors.pop() if len(sensors) == 1 else None, self._nodata())

    def _nodata(self) -> float | None:
        """The number that marks no data in every scene; None when they differ, and for float, which has 0 there."""
        values = {0.0 if layout.zeros else value for layout in self.layouts for value in layout.nodata or (None,)}
        return values.pop() if len(values) == 1 and self.layouts[0].dtype != "float32" else None

    @property
    def num_windows(self) -> int:
        return sum(num_windows(layout, self.options) for layout in self.layouts)

    def units(self) -> Iterator[tuple[Job, ...]]:
        """Jobs in portions for one worker; the same ones whatever the number of workers."""
        unit: list[Job] = []
        size = 0
        find_partners = partner_finder(self.partners)
        most = self._tiles_per_unit(self.layouts[0])
        for layout in self.layouts:
            for job in _jobs(layout, self.options, self._tiles_per_unit(layout), find_partners(layout)):
                if unit and size + len(job) > most:
                    yield tuple(unit)
                    unit, size = [], 0
                unit.append(job)
                size += len(job)
        if unit:
            yield tuple(unit)

    def _tiles_per_unit(self, layout: Layout) -> int:
        height, width = window_shape(layout.grid, self.options.tile_size)
        tile_bytes = height * width * len(layout.bands) * np.dtype(layout.dtype).itemsize * (2 if self.partners else 1)
        limit = min(_UNIT_BYTES, (self.options.max_shard_mb << 20) // 4)
        return max(1, min(_MAX_UNIT_TILES, limit // tile_bytes))


def make_plan(source: Path, options: Options, workers: int, on_scenes: OnScenes | None = None) -> Plan:
    """Look at every scene's headers; `on_scenes(done, all)` hears of it. Raises RecipeError on nothing to do."""
    found = find_scenes(source)
    described = _describe_all(source, found.scenes, options, workers, on_scenes)
    layouts, left_out = _of_one_kind(source, described, options)
    notes = _notes(layouts, options)
    if found.no_bands:
        few, count = ", ".join(path.name for path in found.no_bands[:3]), len(found.no_bands)
        notes.append(f"passed over, for they lie beside band files and are none: {few}{f', … ({count})' * (count > 3)}")
    classes = Classes()
    if options.labels_from_folders:
        classes = folder_classes(source, [layout.scene for layout in layouts])
    elif options.label_raster:
        classes = raster_classes(options.label_raster, options.class_names)
        layouts, left_out = _with_place(layouts, left_out)
    partners: list[Layout] = []
    if options.pair_with:
        there = find_scenes(options.pair_with, "--pair-with").scenes
        partners, note = same_bands(_describe_all(options.pair_with, there, options, workers, None), layouts[0])
        notes.append(note)
    return Plan(source, options, layouts, partners, classes, left_out, notes)


def _describe_all(
    source: Path, scenes: list[Scene], options: Options, workers: int, on_scenes: OnScenes | None
) -> Described:
    portions = [tuple(scenes[start : start + _SCENES_AT_ONCE]) for start in range(0, len(scenes), _SCENES_AT_ONCE)]
    start = partial(_describer, source if source.is_dir() else source.parent, options)
    described: Described = []
    for found in in_order(start, portions, workers if len(scenes) > _FEW_SCENES else 1):
        described += found
        if on_scenes:
            on_scenes(len(described), len(scenes))
    return described


def _describer(root: Path, options: Options) -> Callable[[tuple[Scene, ...]], Described]:
    return partial(_describe_portion, root, options)


def _describe_portion(root: Path, options: Options, scenes: tuple[Scene, ...]) -> Described:
    described: Described = []
    for scene in scenes:
        try:
            described.append((scene, describe(scene, options.bands, options.band_names, options.nodata)))
        except UnreadableImage as reason:
            described.append((scene, str(reason)))
        except NotBandFiles:
            described += _describe_portion(root, options, tuple(single_file(root, path) for path in scene.files))
    return described


def _of_one_kind(source: Path, described: Described, options: Options) -> tuple[list[Layout], list[tuple[str, str]]]:
    """The scenes whose bands and dtype most windows have; the others with the reason. Raises RecipeError on none."""
    windows: Counter[tuple[tuple[str, ...], str, int]] = Counter()
    for _, layout in described:
        if isinstance(layout, Layout):
            windows[layout.key] += num_windows(layout, options)
    if not windows:
        scene, reason = described[0]
        raise RecipeError(
            f"none of the {len(described)} images in {str(source)!r} makes a tile; {scene.files[0]}: {reason}"
        )
    usual_key = windows.most_common(1)[0][0]
    usual = next(layout for _, layout in described if isinstance(layout, Layout) and layout.key == usual_key)
    if usual.unnamed:
        examples = {1: "elevation", 2: "VV,VH", 3: "red,green,blue", 4: "red,green,blue,nir"}
        raise RecipeError(
            f"{usual.scene.files[0]} has {usual.dtype} bands without names ({usual.unnamed}); "
            f"name them in their order, e.g. --band-names {examples.get(usual.unnamed, 'B1,B2,B3,…')}"
        )
    kept = [layout for _, layout in described if isinstance(layout, Layout) and layout.key == usual_key]
    reasons = [(scene, _why_apart(layout, usual)) for scene, layout in described]
    left_out = [(str(scene.files[0]), reason) for scene, reason in reasons if reason]
    return kept, left_out


def _why_apart(layout: Layout | str, usual: Layout) -> str | None:
    if isinstance(layout, str):
        return layout
    return None if layout.key == usual.key else f"has bands {layout}, most tiles {usual}; build them apart"


def _with_place(
    layouts: list[Layout], left_out: list[tuple[str, str]]
) -> tuple[list[Layout], list[tuple[str, str]]]:  # fmt: skip
    lost = [layout for layout in layouts if layout.grid.crs is None]
    if len(lost) == len(layouts):
        raise RecipeError(
            f"--label-raster needs imagery with a place on Earth; {lost[0].scene.files[0]} has no coordinate system"
        )
    reason = "has no coordinate system, so the label raster has no place in it"
    return [layout for layout in layouts if layout.grid.crs], left_out + [(str(x.scene.files[0]), reason) for x in lost]


def _notes(layouts: list[Layout], options: Options) -> list[str]:
    first, notes = layouts[0], []
    if resampled := [band for band in first.bands if any(band in layout.resampled for layout in layouts)]:
        notes.append(f"{', '.join(resampled)} were resampled to the finest band's pixels (bilinear)")
    pan = first.scene.panchromatic
    if pan and pan in first.scene.file_bands and pan not in first.bands and not options.bands:
        notes.append(f"{pan} is panchromatic and was left out; --bands {','.join((*first.bands, pan))} takes it")
    sensors = {layout.scene.sensor for layout in layouts} - {None}
    if len(sensors) > 1:
        notes.append(f"{' and '.join(sorted(map(str, sensors)))} name these bands alike, but their numbers differ")
    if {layout.scene.baseline >= OFFSET_BASELINE for layout in layouts if layout.scene.baseline} == {True, False}:
        notes.append("Sentinel-2 scenes from before and after baseline 04.00 mix; their numbers differ by 1,000")
    if any(layout.alpha for layout in layouts):
        names = ",".join((*first.bands, "nir"))
        notes.append(f"the last band is alpha and was taken as a mask of data; --band-names {names} takes it as a band")
    if any(layout.zeros for layout in layouts):
        notes.append("pixels that are 0 in all bands count as no data: none is declared (--nodata says otherwise)")
    if first.dtype == "float32":
        notes.append("pixels without data, or NaN, were stored as 0")
    if options.max_cloud < 1 and not any(cloud_rule(layout) for layout in layouts):
        notes.append(f"no cloud test: of {first} it is not known which numbers are white")
    return notes


def num_windows(layout: Layout, options: Options) -> int:
    height, width = window_shape(layout.grid, options.tile_size)
    rows = (layout.grid.height - height) // options.step + 1
    return rows * ((layout.grid.width - width) // options.step + 1)


def _jobs(layout: Layout, options: Options, most: int, partners: tuple[Layout, ...]) -> Iterator[Job]:
    """Windows in blocks of at most `most`: square ones, or whole rows of windows where a file is stored in strips."""
    height, width = window_shape(layout.grid, options.tile_size)
    step = options.step
    rows = range(0, layout.grid.height - height + 1, step)
    cols = range(0, layout.grid.width - width + 1, step)
    across = min(len(cols), most if layout.striped or not layout.sources else max(math.isqrt(most), most // len(rows)))
    down = max(1, most // across)
    for top in range(0, len(rows), down):
        for left in range(0, len(cols), across):
            yield Job(layout, rows[top : top + down], cols[left : left + across], partners)
