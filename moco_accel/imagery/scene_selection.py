"""Read the headers of all scenes, select those of one set of bands, and note what was decided for the user."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from moco_accel.common.errors import UserError, count_of
from moco_accel.imagery.options import BuildOptions
from moco_accel.imagery.windows import scene_windows, window_notes
from moco_accel.imagery.workers import map_in_order
from moco_accel.images.globs import any_matcher
from moco_accel.images.other_formats import reading_command
from moco_accel.images.products import products_of
from moco_accel.recipe.bands import offer_bands
from moco_accel.scenes.begun_scenes import BegunScenes
from moco_accel.scenes.clouds import OFFSET_BASELINE, cloud_rule
from moco_accel.scenes.competing_kinds import (
    check_one_kind,
    check_one_split,
    files_of,
    sort_kinds,
    unify_types,
)
from moco_accel.scenes.find_scenes import FoundScenes, Scene, find_scenes, single_file
from moco_accel.scenes.image_files import UnreadableImage
from moco_accel.scenes.layouts import Layout, SeparateScenes, read_layout
from moco_accel.scenes.non_imagery import find_label_maps, left_out_notes, looks_like_labels, split_by_name
from moco_accel.scenes.pixel_types import check_nodata

DescribedScenes = list[tuple[Scene, Layout | str]]  # a string is the reason why a scene cannot be read
LeftOut = list[tuple[str, str]]  # file, reason

NOT_UTF8 = "has a name that is no UTF-8; rename it, e.g. with convmv -f latin1 -t utf8 --notest"

_SCENES_AT_ONCE = 32
_MIN_PARALLEL_SCENES = 256  # fewer are read sooner than worker processes start


def select_scenes(
    source: Path,
    options: BuildOptions,
    workers: int,
    on_scenes: Callable[[int, int], None],
    begun: BegunScenes | None = None,
) -> tuple[list[Layout], LeftOut, list[str]]:
    """Select the scenes that are imagery, all of one kind. Masks, label maps and quick-looks beside it are left out.

    Args:
        begun: The scenes of an interrupted build; no others are selected.

    Returns:
        The selected scenes; file and reason of all others; notes for the user.

    Raises:
        UserError: If no scene can be read, several kinds of imagery compete, the bands have no names, or --nodata does
            not fit the dtype.
    """
    found = find_scenes(source, only=options.only or (), label_raster=options.label_raster)
    left_out: LeftOut = [(os.fsencode(path).decode("utf-8", "backslashreplace"), NOT_UTF8) for path in found.unnameable]
    if not found.scenes:
        raise UserError(f"none of the images in {str(source)!r} yields a tile; {': '.join(left_out[0])}")
    root = source if source.is_dir() else source.parent
    scenes, masks, previews = (found.scenes, [], []) if begun else split_by_name(root, found.scenes)
    if not (begun or options.only):
        check_one_split(source, scenes)
    described = describe_scenes(source, scenes, options, workers, on_scenes)
    left_out += [(str(scene.files[0]), reason) for scene, reason in described if isinstance(reason, str)]
    layouts = unify_types([layout for _, layout in described if isinstance(layout, Layout)])
    if not layouts:
        first = ": ".join(left_out[0])
        raise UserError(f"none of the {len(described)} images in {str(source)!r} yields a tile; {first}")
    if begun:
        return _select_begun(source, layouts, begun, left_out, options)
    label_maps = find_label_maps(layouts, options.labels_from_folders)
    not_imagery = {scene.name for scene in label_maps}
    imagery = [layout for layout in layouts if layout.scene.name not in not_imagery]
    is_taken = any_matcher(options.only or ())
    excluded = [name for name in found.names if not is_taken(name)] if options.only else []
    selected, others = _select_kind(source, imagery, options, excluded)
    check_nodata(options.nodata, selected[0].stored_dtype or selected[0].dtype)
    notes = [*_notes(selected, options), *_notes_on_other_files(root, found)]
    notes += _notes_on_left_out(root, options, masks, label_maps, previews, found.names)
    if looks_like_labels(selected):
        notes.append(f"the scenes have few values, as masks and label maps do, e.g. {selected[0].scene.name}")
    return selected, left_out + others, notes


def _notes_on_left_out(
    root: Path,
    options: BuildOptions,
    masks: list[Scene],
    label_maps: list[Scene],
    previews: list[Scene],
    every: list[str],
) -> Iterator[str]:
    # beside others, masks are left out again
    no_masks = sorted({*every} - {*files_of(root, masks)}) if label_maps or previews else []
    for scenes, what, files in (
        (masks, "have names of masks or label maps", every),
        (label_maps, "have few values, as masks and label maps do", no_masks),
        (previews, "have names of quick-looks", no_masks),
    ):
        yield from left_out_notes(root, scenes, what, files, _ways_to_read(root, options))


def _ways_to_read(root: Path, options: BuildOptions) -> dict[str, Callable[[tuple[Scene, ...]], DescribedScenes]]:
    """Return functions that read the layouts of scenes: with the options as given, and without names of bands."""
    ways = {"": options}
    if given := [flag for flag, names in (("--bands", options.bands), ("--band-names", options.band_names)) if names]:
        ways[f" without {' and '.join(given)}"] = replace(options, bands=None, band_names=None)
    return {how: partial(_describe_portion, root, chosen) for how, chosen in ways.items()}


def _notes_on_other_files(root: Path, found: FoundScenes) -> Iterator[str]:
    if found.non_band_files:
        few, count = ", ".join(path.name for path in found.non_band_files[:3]), len(found.non_band_files)
        more = f", … ({count})" if count > 3 else ""
        yield f"ignored, because they are beside band files and are not bands: {few}{more}"
    if unread := found.other_formats:
        yield (
            f"left out, because their formats are not read: {count_of(len(unread), 'file')}, e.g. "
            f"{unread[0].relative_to(root)}; {reading_command(unread[0])}"
        )


def _select_begun(
    source: Path, layouts: list[Layout], begun: BegunScenes, left_out: LeftOut, options: BuildOptions
) -> tuple[list[Layout], LeftOut, list[str]]:
    cast = [replace(layout, dtype=begun.dtype) if layout.stored_dtype else layout for layout in layouts]
    selected = begun.unchanged(cast)
    if not selected:
        raise UserError(
            f"none of the {len(begun.scenes):,} scenes that the build began with is in SRC={str(source)!r} as it was; "
            "put them back, or pass --overwrite"
        )
    notes = list(_notes(selected, options))
    known = {scene[0] for scene in begun.scenes}
    if new := sorted(layout.scene.name for layout in layouts if layout.scene.name not in known):
        found = count_of(len(new), "scene")
        notes.append(f"{found} came after the build began or did not fit it, e.g. {new[0]}; --overwrite begins anew")
    return selected, left_out, notes


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


def _select_kind(
    source: Path, layouts: list[Layout], options: BuildOptions, excluded: Sequence[str]
) -> tuple[list[Layout], LeftOut]:
    """Select the only kind; with --bands, the only one whose bands have names, if one has."""
    kinds = sort_kinds(layouts, [len(scene_windows(layout, options)) for layout in layouts], not options.only)
    named = [kind for kind in kinds if kind.layouts[0].bands] if options.bands else []
    check_one_kind(source, named or kinds, excluded)
    chosen = (named or kinds)[0]
    usual = chosen.layouts[0]
    if usual.unnamed:
        more = ": the last is called alpha but has too many values for a mask" if usual.alpha_is_band else ""
        raise UserError(
            f"{usual.scene.files[0]} has {usual.dtype} bands without names ({usual.unnamed}{more}); "
            f"name them in their order, e.g. {offer_bands(usual.unnamed)}"
        )
    left_out = [
        (str(layout.scene.files[0]), f"has bands {kind}, most tiles {chosen}; build them separately")
        for kind in kinds
        for layout in kind.layouts
        if kind is not chosen
    ]
    return chosen.layouts, left_out


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
    products = set(products_of([layout.scene.name for layout in layouts])) if options.only else set()
    if len(products) > 1:
        yield f"products of the same scenes are built together: {', '.join(sorted(products))}"
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
    if cast := [layout for layout in layouts if layout.stored_dtype]:
        yield (
            f"cast from {cast[0].stored_dtype}: {count_of(len(cast), 'scene')}, e.g. {cast[0].scene.name}, to "
            f"{first.dtype}; windows with values that {first.dtype} cannot hold are skipped "
            "unless --nodata says that they mark no data"
        )
    if first.scales:
        tags = "; ".join(dict.fromkeys(f"scale {scale:g}, offset {offset:g}" for scale, offset in first.scales))
        yield f"the stored numbers are kept; the files' tags ({tags}) are not applied"
    yield from window_notes(layouts, options)
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
