"""What a build is going to do: which scenes go together, the jobs they are cut in, and what the user should know."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.imagery.cutting import Job, window_shape
from moco_accel.imagery.labels import Classes, check_covered, folder_classes, raster_classes
from moco_accel.imagery.notes import plan_notes
from moco_accel.imagery.options import Options
from moco_accel.imagery.paired_seasons import Described, both_files, no_partner, partner_finder, same_bands
from moco_accel.imagery.workers import in_order
from moco_accel.recipe.bands import example_bands
from moco_accel.scenes.clouds import cloud_rule
from moco_accel.scenes.layouts import LOWEST_FLOAT, Layout, NotBandFiles, check_nodata, describe
from moco_accel.scenes.pictures import UnreadableImage
from moco_accel.scenes.scenes import Scene, find_scenes, single_file
from moco_accel.sources.tile_facts import TileFacts

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
        """The number that marks no data in every scene. When they differ, None; for float, which may be NaN, another.

        A satellite's zeros are not declared: only where all bands are 0, for one band's 0 may be its darkest.
        """
        is_float = self.layouts[0].dtype == "float32"
        scenes = (*self.layouts, *self.partners) if is_float else self.layouts
        values = {value for layout in scenes for value in layout.nodata or (None,)}
        value = values.pop() if len(values) == 1 else None
        if not is_float:
            return value
        return LOWEST_FLOAT if value is None or not math.isfinite(value) else float(np.float32(value))

    @property
    def num_windows(self) -> int:
        return sum(num_windows(layout, self.options) for layout in self.layouts)

    def units(self) -> Iterator[tuple[Job, ...]]:
        """Jobs in portions for one worker; the same ones whatever the number of workers."""
        unit: list[Job] = []
        tiles = size = 0
        find_partners = partner_finder(self.partners, both_files(self.source, self.options.pair_with))
        most_bytes = min(_UNIT_BYTES, (self.options.max_shard_mb << 20) // 4)
        for layout in self.layouts:
            tile_bytes = self._tile_bytes(layout)
            most_tiles = max(1, min(_MAX_UNIT_TILES, most_bytes // tile_bytes))
            for job in _jobs(layout, self.options, most_tiles, find_partners(layout)):
                if unit and (size + len(job) * tile_bytes > most_bytes or tiles + len(job) > _MAX_UNIT_TILES):
                    yield tuple(unit)
                    unit, tiles, size = [], 0, 0
                unit.append(job)
                tiles, size = tiles + len(job), size + len(job) * tile_bytes
        if unit:
            yield tuple(unit)

    def _tile_bytes(self, layout: Layout) -> int:
        height, width = window_shape(layout.grid, self.options.tile_size)
        return height * width * len(layout.bands) * np.dtype(layout.dtype).itemsize * (2 if self.partners else 1)

    def decided(self) -> dict[str, str]:
        """What a resumed build must find as it was, beyond what was asked for: classes, scenes and their rules."""
        seen = hashlib.sha256()
        for layout in (*self.layouts, *self.partners):
            seen.update(repr((layout.scene.name, layout.key, layout.grid, layout.nodata, cloud_rule(layout))).encode())
        return {"classes": ",".join(self.classes.names), "scenes": seen.hexdigest()}


def make_plan(source: Path, options: Options, workers: int, on_scenes: OnScenes | None = None) -> Plan:
    """Look at every scene's headers; `on_scenes(done, all)` hears of it. Raises UserError on nothing to do."""
    found = find_scenes(source)
    described = _describe_all(source, found.scenes, options, workers, on_scenes)
    layouts, left_out = _of_one_kind(source, described, options)
    check_nodata(options.nodata, layouts[0].dtype)
    notes = plan_notes(layouts, options)
    if found.no_bands:
        few, count = ", ".join(path.name for path in found.no_bands[:3]), len(found.no_bands)
        notes.append(f"passed over, for they lie beside band files and are none: {few}{f', … ({count})' * (count > 3)}")
    classes = Classes()
    if options.labels_from_folders:
        classes = folder_classes(source, [layout.scene for layout in layouts])
    elif options.label_raster:
        classes = raster_classes(options.label_raster, options.class_names)
        layouts, left_out = _with_place(layouts, left_out)
        check_covered(options.label_raster, [layout.grid for layout in layouts])
    partners: list[Layout] = []
    if options.pair_with:
        there = find_scenes(options.pair_with, "--pair-with").scenes
        others = _describe_all(options.pair_with, there, options, workers, None)
        partners, note = same_bands(others, layouts[0])
        one_each = both_files(source, options.pair_with)
        if not any(map(partner_finder(partners, one_each), layouts)):
            raise no_partner(layouts[0], partners, one_each)
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
        except NotBandFiles:
            described += _describe_portion(root, options, tuple(single_file(root, path) for path in scene.files))
        except UnreadableImage as reason:
            described.append((scene, str(reason)))
    return described


def _of_one_kind(source: Path, described: Described, options: Options) -> tuple[list[Layout], list[tuple[str, str]]]:
    """The scenes whose bands and dtype most windows have; the others with the reason. Raises UserError on none."""
    windows: Counter[tuple[tuple[str, ...], str, int]] = Counter()
    for _, layout in described:
        if isinstance(layout, Layout):
            windows[layout.key] += num_windows(layout, options)
    if not windows:
        scene, reason = described[0]
        raise UserError(
            f"none of the {len(described)} images in {str(source)!r} makes a tile; {scene.files[0]}: {reason}"
        )
    usual_key = windows.most_common(1)[0][0]
    usual = next(layout for _, layout in described if isinstance(layout, Layout) and layout.key == usual_key)
    if usual.unnamed:
        more = ": the last is called alpha and holds too many numbers for a mask" if usual.near_alpha else ""
        raise UserError(
            f"{usual.scene.files[0]} has {usual.dtype} bands without names ({usual.unnamed}{more}); "
            f"name them in their order, e.g. --band-names {example_bands(usual.unnamed)}"
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
        raise UserError(
            f"--label-raster needs imagery with a place on Earth; {lost[0].scene.files[0]} has no coordinate system"
        )
    reason = "has no coordinate system, so the label raster has no place in it"
    return [layout for layout in layouts if layout.grid.crs], left_out + [(str(x.scene.files[0]), reason) for x in lost]


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
