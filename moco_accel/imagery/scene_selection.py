"""Read the headers of all scenes, select those of one set of bands, and note what was decided for the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from moco_accel.common.errors import UserError
from moco_accel.imagery.options import BuildOptions
from moco_accel.imagery.windows import scene_windows
from moco_accel.imagery.workers import map_in_order
from moco_accel.recipe.bands import example_bands
from moco_accel.scenes.clouds import OFFSET_BASELINE, cloud_rule
from moco_accel.scenes.find_scenes import Scene, find_scenes, single_file
from moco_accel.scenes.image_files import UnreadableImage
from moco_accel.scenes.layouts import Layout, SeparateScenes, check_nodata, read_layout

DescribedScenes = list[tuple[Scene, Layout | str]]  # a string is the reason why a scene cannot be read
LeftOut = list[tuple[str, str]]  # file, reason

_SCENES_AT_ONCE = 32
_MIN_PARALLEL_SCENES = 256  # fewer are read sooner than worker processes start


def select_scenes(
    source: Path, options: BuildOptions, workers: int, on_scenes: Callable[[int, int], None]
) -> tuple[list[Layout], LeftOut, list[str]]:
    """Select the scenes with the bands and dtype of most windows.

    Returns:
        The selected scenes; file and reason of all others; notes for the user.

    Raises:
        UserError: If no scene can be read, the bands have no names, or --nodata does not fit the dtype.
    """
    found = find_scenes(source)
    described = describe_scenes(source, found.scenes, options, workers, on_scenes)
    layouts, left_out = _select_usual_bands(source, described, options)
    check_nodata(options.nodata, layouts[0].dtype)
    notes = list(_notes(layouts, options))
    if found.non_band_files:
        few, count = ", ".join(path.name for path in found.non_band_files[:3]), len(found.non_band_files)
        more = f", … ({count})" if count > 3 else ""
        notes.append(f"ignored, because they are beside band files and are not bands: {few}{more}")
    return layouts, left_out, notes


def describe_scenes(
    source: Path, scenes: list[Scene], options: BuildOptions, workers: int, on_scenes: Callable[[int, int], None]
) -> DescribedScenes:
    """Read the layout of every scene; call `on_scenes(done, total)` meanwhile."""
    portions = [tuple(scenes[start : start + _SCENES_AT_ONCE]) for start in range(0, len(scenes), _SCENES_AT_ONCE)]
    describe = partial(_describe_portion, source if source.is_dir() else source.parent, options)
    described: DescribedScenes = []
    for found in map_in_order(describe, portions, workers if len(scenes) > _MIN_PARALLEL_SCENES else 1):
        described += found
        on_scenes(len(described), len(scenes))
    return described


def _describe_portion(root: Path, options: BuildOptions, scenes: tuple[Scene, ...]) -> DescribedScenes:
    described: DescribedScenes = []
    for scene in scenes:
        try:
            described.append((scene, read_layout(scene, options.bands, options.band_names, options.nodata)))
        except SeparateScenes:
            described += _describe_portion(root, options, tuple(single_file(root, path) for path in scene.files))
        except UnreadableImage as reason:
            described.append((scene, str(reason)))
    return described


def _select_usual_bands(
    source: Path, described: DescribedScenes, options: BuildOptions
) -> tuple[list[Layout], LeftOut]:
    layouts = [layout for _, layout in described if isinstance(layout, Layout)]
    if not layouts:
        scene, reason = described[0]
        raise UserError(
            f"none of the {len(described)} images in {str(source)!r} yields a tile; {scene.files[0]}: {reason}"
        )
    windows: Counter[tuple[tuple[str, ...], str, int]] = Counter()
    for layout in layouts:
        windows[layout.key] += len(scene_windows(layout, options))
    usual_key = windows.most_common(1)[0][0]
    selected = [layout for layout in layouts if layout.key == usual_key]
    usual = selected[0]
    if usual.unnamed:
        more = ": the last is called alpha but has too many values for a mask" if usual.alpha_is_band else ""
        raise UserError(
            f"{usual.scene.files[0]} has {usual.dtype} bands without names ({usual.unnamed}{more}); "
            f"name them in their order, e.g. --band-names {example_bands(usual.unnamed)}"
        )
    left_out: LeftOut = []
    for scene, found in described:
        if isinstance(found, str):
            left_out.append((str(scene.files[0]), found))
        elif found.key != usual_key:
            left_out.append((str(scene.files[0]), f"has bands {found}, most tiles {usual}; build them separately"))
    return selected, left_out


def select_georeferenced(layouts: list[Layout]) -> tuple[list[Layout], LeftOut]:
    """Select the scenes that a label raster can label: those with a CRS.

    Raises:
        UserError: If there are none.
    """
    located = [layout for layout in layouts if layout.grid.crs]
    others = [str(layout.scene.files[0]) for layout in layouts if not layout.grid.crs]
    if not located:
        raise UserError(f"--label-raster needs georeferenced imagery; {others[0]} has no coordinate system")
    return located, [(file, "has no coordinate system, so the label raster cannot label it") for file in others]


def _notes(layouts: Sequence[Layout], options: BuildOptions) -> Iterator[str]:
    first = layouts[0]
    if resampled := [band for band in first.bands if any(band in layout.resampled for layout in layouts)]:
        yield f"{', '.join(resampled)} were resampled to the finest band's pixels (bilinear)"
    pan = first.scene.panchromatic
    if pan and pan in first.scene.file_bands and pan not in first.bands and not options.bands:
        yield f"{pan} is panchromatic and was left out; --bands {','.join((*first.bands, pan))} includes it"
    sensors = {layout.scene.sensor for layout in layouts} - {None}
    if len(sensors) > 1:
        yield f"{' and '.join(sorted(map(str, sensors)))} use the same names for these bands, but their values differ"
    if {layout.scene.baseline >= OFFSET_BASELINE for layout in layouts if layout.scene.baseline} == {True, False}:
        yield "Sentinel-2 scenes from before and after baseline 04.00 are mixed; their values differ by 1,000"
    if any(layout.alpha for layout in layouts):
        names = ",".join((*first.bands, "nir"))
        yield f"the last band is alpha and was used as a data mask; --band-names {names} stores it as a band"
    if any(layout.zero_is_nodata for layout in layouts):
        yield "pixels that are 0 in all bands count as no data, because no nodata number is declared; --nodata sets one"
    if options.max_cloud < 1:
        yield from _cloud_notes(layouts)


def _cloud_notes(layouts: Sequence[Layout]) -> Iterator[str]:
    with_rule = [layout for layout in layouts if cloud_rule(layout)]
    if not with_rule:
        yield f"no cloud test: it is not known which values of {layouts[0]} are white"
    elif any(x.scene.sensor == "landsat8" and not x.scene.surface and x.sun_elevation is None for x in with_rule):
        yield (
            "the cloud test assumes that the sun is overhead, because a scene has no _MTL.txt; it misses clouds when "
            "the sun is low"
        )
