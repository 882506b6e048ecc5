"""Find the scenes of another season (--pair-with) that may show the same place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.imagery.scene_selection import DescribedScenes
from moco_accel.scenes.grids import format_bounds
from moco_accel.scenes.layouts import Layout

PAIRING_RULE = (
    "scenes pair by place if both have a CRS, otherwise by the same path below SRC and --pair-with and the same size"
)


def select_paired_scenes(
    described: DescribedScenes, layouts: list[Layout], ignore_names: bool
) -> tuple[list[Layout], str]:
    """Select the scenes of --pair-with that have the bands of the scenes of SRC.

    Returns:
        The selected scenes, and a note on their number.

    Raises:
        UserError: If there are none, or they pair with no scene of SRC.
    """
    usual = layouts[0]
    layouts_there = [layout for _, layout in described if isinstance(layout, Layout)]
    cast = [replace(x, dtype=usual.dtype) if x.stored_dtype == usual.stored_dtype != "" else x for x in layouts_there]
    paired_scenes = [layout for layout in cast if (layout.key, layout.scales) == (usual.key, usual.scales)]
    if not paired_scenes:
        scene, layout = described[0]
        reason = layout if isinstance(layout, str) else f"has bands {layout}, not {usual}"
        raise UserError(f"--pair-with holds no scene with the same bands; {scene.files[0]} {reason}")
    if not any(map(pair_finder(paired_scenes, ignore_names), layouts)):
        raise _unpaired_error(usual, paired_scenes, ignore_names)
    how = "place" if all(layout.grid.crs for layout in (usual, *paired_scenes)) else "path, because some have no CRS"
    counts = f"{len(paired_scenes)} of {len(described)} scenes of --pair-with"
    return paired_scenes, f"{counts} have the same bands; paired by {how}"


def are_single_files(source: Path, pair_with: Path | None) -> bool:
    """Return True if SRC and --pair-with are one file each; they pair whatever their names are."""
    return pair_with is not None and source.is_file() and pair_with.is_file()


def pair_finder(scenes: list[Layout], ignore_names: bool) -> Callable[[Layout], tuple[Layout, ...]]:
    """Return a function that finds those of `scenes` that may show the place of a given scene.

    These overlap it in the same CRS; if one of the two has no CRS, they have the same path and size. With
    `ignore_names`, all paths count as the same.
    """
    by_name = {"" if ignore_names else scene.scene.name: scene for scene in scenes}
    located = [scene for scene in scenes if scene.grid.crs]
    crs = np.array([scene.grid.crs for scene in located])
    edges = np.array([_bounds(scene) for scene in located]).reshape(-1, 4)

    def find(layout: Layout) -> tuple[Layout, ...]:
        named = by_name.get("" if ignore_names else layout.scene.name)
        if named and not (layout.grid.crs and named.grid.crs) and _size(layout) == _size(named):
            return (named,)
        if layout.grid.crs is None:
            return ()
        left, bottom, right, top = _bounds(layout)
        overlaps = (edges[:, 0] < right) & (left < edges[:, 2]) & (edges[:, 1] < top) & (bottom < edges[:, 3])
        return tuple(located[index] for index in np.flatnonzero(overlaps & (crs == layout.grid.crs)))

    return find


def _unpaired_error(layout: Layout, scenes: list[Layout], ignore_names: bool) -> UserError:
    """Explain why the first scene of SRC pairs with none of `scenes`."""
    named = scenes[0] if ignore_names else next((x for x in scenes if x.scene.name == layout.scene.name), None)
    other = named or scenes[0]
    file, other_file = layout.scene.files[0], other.scene.files[0]
    if layout.grid.crs and other.grid.crs:
        here, there = (f"({format_bounds(_bounds(scene), scene.grid.crs)})" for scene in (layout, other))
        why = f"{file} {here} does not overlap {other_file} {there}"
        if layout.grid.crs != other.grid.crs:
            why += "; gdalwarp -t_srs converts both to one CRS"
    elif named:
        why = f"{file} has {_size(layout)} pixels, {other_file} has {_size(named)} pixels"
    else:
        why = f"no scene of --pair-with has the path {layout.scene.name}; one has {other.scene.name}"
    return UserError(f"no scene of SRC has a pair: {why}; {PAIRING_RULE}")


def _size(layout: Layout) -> str:
    return f"{layout.grid.height} × {layout.grid.width}"


def _bounds(layout: Layout) -> tuple[float, float, float, float]:
    return layout.grid.bounds(0, 0, layout.grid.height, layout.grid.width)
