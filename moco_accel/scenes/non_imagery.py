"""Find masks, label maps and quick-looks among the scenes: by their names, and by the values of a few of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from moco_accel.common.errors import count_of
from moco_accel.common.pixels import Pixels
from moco_accel.images import label_maps
from moco_accel.images.image_kinds import images_below
from moco_accel.recipe.bands import example_bands
from moco_accel.scenes.competing_kinds import files_of, only_option
from moco_accel.scenes.find_scenes import Scene
from moco_accel.scenes.image_files import UnreadableImage
from moco_accel.scenes.layouts import Layout
from moco_accel.scenes.rasters import PictureReader, RasterReader

_SIDE = 512  # pixels that are read of a scene


def split_by_name(root: Path, scenes: Sequence[Scene]) -> tuple[list[Scene], list[Scene], list[Scene]]:
    """Return scenes that are imagery, masks and quick-looks by their names; all are imagery if none else is."""
    names = [scene.files[0].relative_to(root).as_posix() for scene in scenes]
    mask_names = set(label_maps.confirm_masks(label_maps.find_masks(names), images_below(root, names).pixels))
    masks = [scene for scene, name in zip(scenes, names, strict=True) if name in mask_names]
    rest = [scene for scene, name in zip(scenes, names, strict=True) if name not in mask_names]
    previews = [scene for scene in rest if not scene.file_bands and label_maps.has_preview_name(scene.name)]
    if len(previews) == len(rest):
        return rest, masks, []
    preview_names = {scene.name for scene in previews}
    return [scene for scene in rest if scene.name not in preview_names], masks, previews


def find_label_maps(layouts: Sequence[Layout], has_class_folders: bool) -> list[Scene]:
    """Return the scenes that are label maps by their values; none if all are.

    Args:
        has_class_folders: The folders directly below SRC are classes: each holds imagery.
    """
    by_name = {layout.scene.name: layout for layout in layouts}
    found = label_maps.find_label_maps(
        list(by_name), lambda name: by_name[name].key, lambda name: _read_middle(by_name[name])
    )
    if has_class_folders:
        classes = {name.partition("/")[0] for name in by_name.keys() - set(found)}
        found = [name for name in found if name.partition("/")[0] in classes]
    return [by_name[name].scene for name in found]


def looks_like_labels(layouts: Sequence[Layout]) -> bool:
    """Check whether a few scenes hold few values, as masks do."""
    by_name = {layout.scene.name: layout for layout in layouts}
    return label_maps.have_few_values(list(by_name), lambda name: _read_middle(by_name[name]))


def _read_middle(layout: Layout) -> Pixels | None:
    """Read the middle of a scene; None if it is damaged."""
    try:
        reader = RasterReader(layout, layout.grid, None) if layout.sources else PictureReader(layout)
        height, width = min(_SIDE, layout.grid.height), min(_SIDE, layout.grid.width)
        pixels = reader.read((layout.grid.height - height) // 2, (layout.grid.width - width) // 2, height, width)[0]
        reader.close()
    except UnreadableImage:
        return None
    return pixels


def left_out_notes(
    root: Path,
    scenes: Sequence[Scene],
    what: str,
    files: Sequence[str],
    reads: dict[str, Callable[[tuple[Scene, ...]], list[tuple[Scene, Layout | str]]]],
) -> Iterator[str]:
    """Yield a line on each kind of scenes that are left out, with the option that builds it.

    Args:
        what: Why they are left out: `have names of masks`.
        files: Files below `root`; an option matches none of them but those left out.
        reads: Functions that return the layout of scenes, or why one has none, each by words on how it reads. One scene
            of each group of names is read, with the first of them that can.
    """
    by_name = {scene.name: scene for scene in scenes}
    kinds: dict[object, tuple[str, Layout | str, list[list[str]]]] = {}
    for group in label_maps.group_by_name(list(by_name)).values():
        tried = [(how, read((by_name[group[0]],))[0][1]) for how, read in reads.items()]
        how, layout = next((x for x in tried if isinstance(x[1], Layout)), tried[0])
        key = (how, layout.key, layout.scales) if isinstance(layout, Layout) else ""
        kinds.setdefault(key, (how, layout, []))[2].append(files_of(root, [by_name[name] for name in group]))
    for how, layout, groups in kinds.values():
        number = count_of(sum(map(len, groups)), "file")
        remedy = f", which {layout}" if isinstance(layout, str) else f"; {_option(layout, groups, files, how)}"
        yield f"left out, because they {what}: {number}, e.g. {groups[0][0]}{remedy}"


def _option(layout: Layout, groups: Sequence[Sequence[str]], files: Sequence[str], how: str) -> str:
    """Return what builds all groups of files, or else the first one."""
    label = "label" if layout.unnamed == 1 else example_bands(layout.unnamed)
    names = [f"--band-names {label}"] if layout.unnamed else []
    every = [name for group in groups for name in group]
    for wanted, what in ((every, "them"), (groups[0], "such")):
        if only := only_option(wanted, sorted({*files, *every} - set(wanted))):
            return f"{' '.join([only, *names])}{how} builds {what}"
    return f"{' and '.join(['a folder of their own', *names])}{how} builds them"
