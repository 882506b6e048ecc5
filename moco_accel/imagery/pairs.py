"""Which scenes of another season may hold the same place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moco_accel.imagery.layouts import Layout
from moco_accel.imagery.scenes import Scene
from moco_accel.recipe_text import RecipeError

Described = list[tuple[Scene, Layout | str]]


def same_bands(described: Described, usual: Layout) -> tuple[list[Layout], str]:
    """Layouts of --pair-with that tiles can pair with, and a note of how many they are. Raises RecipeError on none."""
    partners = [layout for _, layout in described if isinstance(layout, Layout) and layout.key == usual.key]
    if not partners:
        scene, layout = described[0]
        reason = layout if isinstance(layout, str) else f"has bands {layout}, not {usual}"
        raise RecipeError(f"--pair-with holds no scene with the same bands; {scene.files[0]} {reason}")
    return partners, f"{len(partners)} of {len(described)} scenes of --pair-with have the same bands"


def partner_finder(partners: list[Layout]) -> Callable[[Layout], tuple[Layout, ...]]:
    """Scenes that may hold the same place: overlapping in the same CRS, or of the same name where there is none."""
    by_name = {partner.scene.name: partner for partner in partners if partner.grid.crs is None}
    placed = [partner for partner in partners if partner.grid.crs]
    crs = np.array([partner.grid.crs for partner in placed])
    edges = np.array([_edges(partner) for partner in placed]).reshape(-1, 4)

    def find(layout: Layout) -> tuple[Layout, ...]:
        if layout.grid.crs is None:
            return (by_name[layout.scene.name],) if layout.scene.name in by_name else ()
        left, bottom, right, top = _edges(layout)
        overlaps = (edges[:, 0] < right) & (left < edges[:, 2]) & (edges[:, 1] < top) & (bottom < edges[:, 3])
        return tuple(placed[index] for index in np.flatnonzero(overlaps & (crs == layout.grid.crs)))

    return find


def _edges(layout: Layout) -> npt.NDArray[np.float64]:
    return np.array(layout.grid.bounds(0, 0, layout.grid.height, layout.grid.width))
