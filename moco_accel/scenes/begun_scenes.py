"""The scenes that a build began with, as its journal stores them: a resumed build does without those that changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moco_accel.scenes.clouds import cloud_rule
from moco_accel.scenes.find_scenes import Scene
from moco_accel.scenes.grids import Grid
from moco_accel.scenes.layouts import Layout

CHANGED = "changed or removed since the build began"


@dataclass(frozen=True)
class BegunScenes:
    """Scenes in the order in which they are cut, and what they had in common.

    Attributes:
        scenes: Name, first file below SRC, digest, height, width, sensor, and whether it is read in whole rows.
    """

    bands: list[str]
    dtype: str
    nodata: float | None
    class_names: list[str]
    class_values: list[int]
    scenes: list[list[Any]]

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> BegunScenes:
        """Return the scenes that `to_json` returned. Raises TypeError for anything else."""
        return cls(**fields)

    def unchanged(self, layouts: Sequence[Layout]) -> list[Layout]:
        """Return those of `layouts` that the build began with, as they are now."""
        digests = {scene[0]: scene[2] for scene in self.scenes}
        return [layout for layout in layouts if digests.get(layout.scene.name) == _digest(layout)]

    def in_order(self, root: Path, layouts: Sequence[Layout]) -> list[Layout]:
        """Return all scenes; those that `layouts` lack only keep the places of their windows."""
        there = {layout.scene.name: layout for layout in layouts}
        return [there.get(scene[0]) or self._gone(root, *scene) for scene in self.scenes]

    def _gone(
        self, root: Path, name: str, file: str, digest: str, height: int, width: int, sensor: str | None, striped: bool
    ) -> Layout:
        scene, sources = Scene(name, (root / file,), sensor=sensor), ((root / file, 1),)
        grid = Grid(height, width)
        return Layout(scene, tuple(self.bands), self.dtype, grid, sources, striped=striped, is_gone=True)


def begun_scenes(
    root: Path, layouts: Sequence[Layout], nodata: float | None, class_names: Sequence[str], class_values: Sequence[int]
) -> BegunScenes:
    """Describe the scenes of a build that begins."""
    first = layouts[0]
    scenes = [
        [
            layout.scene.name,
            layout.scene.files[0].relative_to(root).as_posix(),
            _digest(layout),
            layout.grid.height,
            layout.grid.width,
            layout.scene.sensor,
            layout.striped or not layout.sources,
        ]
        for layout in layouts
    ]
    return BegunScenes(list(first.bands), first.dtype, nodata, list(class_names), list(class_values), scenes)


def _digest(layout: Layout) -> str:
    text = repr((layout.scene.name, layout.key, layout.grid, cloud_rule(layout)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
