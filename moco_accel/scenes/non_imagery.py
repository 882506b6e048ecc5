"""Find masks, label maps and quick-looks among the scenes: by their names, and by the values of a few of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from moco_accel.common.pixels import Pixels
from moco_accel.images.image_kinds import images_below
from moco_accel.images.label_maps import MAX_LABELS, confirm_masks, find_masks, has_preview_name, is_label_map
from moco_accel.scenes.find_scenes import Scene
from moco_accel.scenes.image_files import UnreadableImage
from moco_accel.scenes.layouts import Layout
from moco_accel.scenes.rasters import PictureReader, RasterReader

_MAX_GROUPS = 64  # of which a few files are read
_SAMPLES = 4  # files of each
_SIDE = 512  # pixels that are read of each


def split_by_name(root: Path, scenes: Sequence[Scene]) -> tuple[list[Scene], list[Scene], list[Scene]]:
    """Return scenes that are imagery, masks and quick-looks by their names; all are imagery if none else is."""
    names = [scene.files[0].relative_to(root).as_posix() for scene in scenes]
    mask_names = set(confirm_masks(find_masks(names), images_below(root, names).pixels))
    masks = [scene for scene, name in zip(scenes, names, strict=True) if name in mask_names]
    rest = [scene for scene, name in zip(scenes, names, strict=True) if name not in mask_names]
    previews = [scene for scene in rest if not scene.file_bands and has_preview_name(scene.name)]
    if len(previews) == len(rest):
        return rest, masks, []
    preview_names = {scene.name for scene in previews}
    return [scene for scene in rest if scene.name not in preview_names], masks, previews


def find_label_maps(layouts: Sequence[Layout], has_class_folders: bool) -> list[Layout]:
    """Return the scenes that are label maps by their values; none if all are.

    A few scenes of each folder and kind are read. Beside imagery with more bands, few values make a label map. Beside
    imagery of the same kind, the values must also be those of labels: from 0 or 1 on, or 0 and 255, or pure colours.

    Args:
        has_class_folders: Folders are classes: each holds imagery.
    """
    groups: dict[object, list[Layout]] = {}
    folders = {(layout.scene.files[0].parent, layout.key) for layout in layouts}
    for layout in layouts:
        folder = None if has_class_folders or len(folders) > _MAX_GROUPS else layout.scene.files[0].parent
        groups.setdefault((folder, layout.key), []).append(layout)
    if len(groups) < 2:
        return []
    likely = [group for group in groups.values() if _holds_labels(group)]
    others = [group for group in groups.values() if group not in likely]
    if not others:
        return []
    most = max(len(group[0].bands) or group[0].unnamed for group in others)
    same = {group[0].key for group in others}
    return [
        layout
        for group in likely
        if (len(group[0].bands or (1,)) < most and group[0].key not in same) or _are_label_values(_samples(group))
        for layout in group
    ]


def looks_like_labels(layouts: Sequence[Layout]) -> bool:
    """Check whether a few scenes hold few values, as masks do."""
    return _holds_labels(layouts)


def _holds_labels(group: Sequence[Layout]) -> bool:
    count = len(group[0].bands) or group[0].unnamed
    if not (count == 1 or (count == 3 and group[0].dtype == "uint8")):
        return False
    samples = list(_samples(group))
    return bool(samples) and all(map(is_label_map, samples)) and any(len(np.unique(x)) > 1 for x in samples)


def _samples(group: Sequence[Layout]) -> Iterator[Pixels]:
    """Read the middle of a few scenes; damaged ones are passed over."""
    for layout in (group[index] for index in sorted({len(group) * n // _SAMPLES for n in range(_SAMPLES)})):
        try:
            reader = RasterReader(layout, layout.grid, None) if layout.sources else PictureReader(layout)
            height, width = min(_SIDE, layout.grid.height), min(_SIDE, layout.grid.width)
            yield reader.read((layout.grid.height - height) // 2, (layout.grid.width - width) // 2, height, width)[0]
            reader.close()
        except UnreadableImage:
            continue


def _are_label_values(samples: Iterator[Pixels]) -> bool:
    found = list(samples)
    colours = np.unique(np.concatenate([x.reshape(len(x), -1) for x in found], axis=1), axis=1)
    if colours.shape[1] > MAX_LABELS:
        return False
    if len(colours) == 3:
        return bool(np.isin(colours, (0, 255)).all(axis=0).sum() >= 2)
    return bool(colours.min() in (0, 1) and (colours.max() == 255 or colours.max() <= MAX_LABELS))
