"""Which scenes of another season may hold the same place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moco_accel.common.errors import UserError
from moco_accel.scenes.grids import place
from moco_accel.scenes.layouts import Layout
from moco_accel.scenes.scenes import Scene

Described = list[tuple[Scene, Layout | str]]

RULE = "scenes pair by place where both have a CRS, else by the same path below SRC and --pair-with and the same size"


def same_bands(described: Described, usual: Layout) -> tuple[list[Layout], str]:
    """Layouts of --pair-with that tiles can pair with, and a note of how many they are. Raises UserError on none."""
    partners = [layout for _, layout in described if isinstance(layout, Layout) and layout.key == usual.key]
    if not partners:
        scene, layout = described[0]
        reason = layout if isinstance(layout, str) else f"has bands {layout}, not {usual}"
        raise UserError(f"--pair-with holds no scene with the same bands; {scene.files[0]} {reason}")
    how = "place" if all(layout.grid.crs for layout in (usual, *partners)) else "path, for not all have a CRS"
    return partners, f"{len(partners)} of {len(described)} scenes of --pair-with have the same bands; paired by {how}"


def both_files(source: Path, pair_with: Path | None) -> bool:
    """Whether SRC and --pair-with are one file each, which pair whatever their names are."""
    return pair_with is not None and source.is_file() and pair_with.is_file()


def partner_finder(partners: list[Layout], one_each: bool = False) -> Callable[[Layout], tuple[Layout, ...]]:
    """Scenes that may hold the same place: overlapping in the same CRS, or where one has none of the same path.

    With `one_each` paths are the same whatever they are.
    """
    by_name = {"" if one_each else partner.scene.name: partner for partner in partners}
    placed = [partner for partner in partners if partner.grid.crs]
    crs = np.array([partner.grid.crs for partner in placed])
    edges = np.array([_edges(partner) for partner in placed]).reshape(-1, 4)

    def find(layout: Layout) -> tuple[Layout, ...]:
        named = by_name.get("" if one_each else layout.scene.name)
        if named and not (layout.grid.crs and named.grid.crs) and _same_size(layout, named):
            return (named,)
        if layout.grid.crs is None:
            return ()
        left, bottom, right, top = _edges(layout)
        overlaps = (edges[:, 0] < right) & (left < edges[:, 2]) & (edges[:, 1] < top) & (bottom < edges[:, 3])
        return tuple(placed[index] for index in np.flatnonzero(overlaps & (crs == layout.grid.crs)))

    return find


def no_partner(layout: Layout, partners: list[Layout], one_each: bool) -> UserError:
    """Of the first scene, when not one has a partner: why, and the rule."""
    named = partners[0] if one_each else next((x for x in partners if x.scene.name == layout.scene.name), None)
    other = named or partners[0]
    if layout.grid.crs and other.grid.crs:
        why = f"{_where(layout)} shares no place with {_where(other)}"
        if layout.grid.crs != other.grid.crs:
            why += "; gdalwarp -t_srs brings both into one CRS"
    elif named:
        why = f"{_size(layout)}, {_size(named)}"
    else:
        why = f"no scene of --pair-with has the path {layout.scene.name}; there is {other.scene.name}"
    return UserError(f"no scene of SRC has a partner: {why}; {RULE}")


def _same_size(one: Layout, other: Layout) -> bool:
    return (one.grid.height, one.grid.width) == (other.grid.height, other.grid.width)


def _size(layout: Layout) -> str:
    return f"{layout.scene.files[0]} has {layout.grid.height} × {layout.grid.width} pixels"


def _where(layout: Layout) -> str:
    bounds = layout.grid.bounds(0, 0, layout.grid.height, layout.grid.width)
    return f"{layout.scene.files[0]} ({place(bounds, layout.grid.crs)})"


def _edges(layout: Layout) -> npt.NDArray[np.float64]:
    return np.array(layout.grid.bounds(0, 0, layout.grid.height, layout.grid.width))
