"""Tell masks, label maps and quick-looks from imagery: by their names, and by their values."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import PurePath

import numpy as np

from moco_accel.common.pixels import Pixels

MAX_LABELS = 16  # values of a label map; more are a dark or a flat picture's
_MIN_PIXELS_PER_LABEL = 16  # the few pixels of a small picture have few values, too
_SAMPLES = 4  # files of each folder that are decoded
_MAX_COLOURS = 256  # of a label map, blurred edges included
_CHECKED_SIDE = 512  # pixels; every n-th one of larger tiles
_MAX_GROUPS = 64  # of images by their names
_LEAST_CONTRAST = 64  # between colours of classes in 8 bits; flat water or snow has less

_WORDS = (
    r"[a-z]*masks?|labels?|label(?:train)?ids|lbls?|annotations?|gts?|ground[_-]?truths?|reference[_-]?maps?"
    r"|seg|segmentations?|instance[_-]?(?:ids|colou?rs?)|udm2?|bqa|scl"
)
_MASK_FOLDER = re.compile(rf"(?:{_WORDS}|ann|qa|segmentation(?:class|object))(?:[_. -].*)?|.*[_. -](?:{_WORDS})", re.I)
# scene_mask, scene_mask_01, mask_R1C2, 1_3B_AnalyticMS_DN_udm, LC08_…_QA_PIXEL
_MASK_STEM = re.compile(
    rf"(?:.*[_. -])?(?:(?:{_WORDS})(?:[_. -]\d+m?)*|(?:masks?|labels?)\d+|qa(?:60|[_-](?:pixel|radsat|aerosol))?)"
    r"|(?:masks?|labels?|gt|seg)(?:[_. -][a-z]*\d[a-z\d]*)+",
    re.I,
)
_MASK_HINT = re.compile(
    "mask|label|lbl|ann|gt|truth|reference|seg|instance|udm|qa|scl", re.I
)  # in every such name; most names have none
_PREVIEW_STEM = re.compile(
    r"(?:.*[_. -])?(?:ql|quick[_-]?looks?|thumb(?:nail)?s?|browse|previews?|pvi)(?:[_. -]\w{1,5}|\d+)?", re.I
)


def has_mask_name(path: str | PurePath) -> bool:
    """Check whether a file's name, or that of a folder in its path, is usual for masks and label maps.

    Args:
        path: Relative to the folder with all files; the names above it say nothing about one of them.
    """
    path = PurePath(path)
    return any(map(_MASK_FOLDER.fullmatch, path.parts[:-1])) or _MASK_STEM.fullmatch(path.stem) is not None


def has_preview_name(path: str | PurePath) -> bool:
    """Check whether a file's name is usual for a reduced copy of a scene: scene-ql.jpg, scene_thumb.png."""
    return _PREVIEW_STEM.fullmatch(PurePath(path).stem) is not None


def find_masks(paths: Sequence[str]) -> list[str]:
    """Return those of `paths` with names of masks, none if all of them are: then they are what the user wants.

    Folders that all paths share are not looked at.
    """
    if len(paths) < 2:
        return []
    folders = {os.path.dirname(path) for path in paths}  # noqa: PTH120 - a million times
    shared = len(PurePath(os.path.commonpath([f"/{folder}" for folder in folders])).parts) - 1
    masks = [path for path in paths if _MASK_HINT.search(path) and has_mask_name("/".join(path.split("/")[shared:]))]
    return masks if len(masks) < len(paths) else []


def confirm_masks(masks: Sequence[str], read: Callable[[str], Pixels | None]) -> list[str]:
    """Return those of `masks` that are no colour pictures: a class may be called `labels` or `mask`.

    A few files of each folder are decoded; a folder with a picture of many colours holds imagery.

    Args:
        read: Pixels [bands, height, width] of an image; None if it cannot be read.
    """
    by_folder: dict[str, list[str]] = {}
    for name in masks:
        by_folder.setdefault(os.path.dirname(name), []).append(name)  # noqa: PTH120 - a million times
    pictures = {folder for folder, names in by_folder.items() if any(_is_picture(read(x)) for x in names[:_SAMPLES])}
    return [name for name in masks if os.path.dirname(name) not in pictures]  # noqa: PTH120


def _is_picture(pixels: Pixels | None) -> bool:
    return pixels is not None and len(pixels) == 3 and np.unique(pixels.reshape(3, -1), axis=1).shape[1] > _MAX_COLOURS


def group_by_name(names: Sequence[str]) -> dict[str, list[str]]:
    """Group images that belong together by their names, in which numbers do not count.

    Groups are folders and names (`images/tile_#`, `images/tile_#_mask`); names alone, folders alone or last words where
    that makes too many groups; in the end, one group.
    """
    for key in (_folder_and_stem, _stem, _folder, _last_word):
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(key(name), []).append(name)
        if len(groups) <= _MAX_GROUPS:
            return groups
    return {"": list(names)}


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def _folder_and_stem(name: str) -> str:
    return _without_numbers(os.path.splitext(name)[0])  # noqa: PTH122 - a million times


def _stem(name: str) -> str:
    return _folder_and_stem(name.rpartition("/")[2])


def _folder(name: str) -> str:
    return _without_numbers(name.rpartition("/")[0])


def _last_word(name: str) -> str:
    return re.split(r"[-_. /]", _folder_and_stem(name))[-1]


def find_label_maps(
    names: Sequence[str], kind_of: Callable[[str], Hashable], read: Callable[[str], Pixels | None]
) -> list[str]:
    """Return those of `names` that are masks or label maps by their values; none if all are.

    A few images of each group of names and kind are read. Where other images of the kind are none, values of labels
    are demanded, too: from 0 or 1 on, or 0 and 255, or colours far from each other.

    Args:
        kind_of: Kind of an image: equal for images whose tiles fit together.
        read: Pixels [bands, height, width] of an image; None if it cannot be read.
    """
    groups: dict[Hashable, list[str]] = {}
    for group, members in group_by_name(names).items():
        for name in members:
            groups.setdefault((group, kind_of(name)), []).append(name)
    samples = {key: _samples(group, read) for key, group in groups.items()}
    few = {key for key, found in samples.items() if _have_few_values(found)}
    kinds_of_pictures = {kind_of(group[0]) for key, group in groups.items() if samples[key] and key not in few}
    if not kinds_of_pictures:
        return []
    return [
        name
        for key, group in groups.items()
        if key in few and (kind_of(group[0]) not in kinds_of_pictures or _are_values_of_labels(samples[key]))
        for name in group
    ]


def have_few_values(names: Sequence[str], read: Callable[[str], Pixels | None]) -> bool:
    """Check whether a few of the images hold few values, as masks and label maps do."""
    return _have_few_values(_samples(names, read))


def _samples(names: Sequence[str], read: Callable[[str], Pixels | None]) -> list[Pixels]:
    """Read a few images, spread evenly; no more once one has many values."""
    found: list[Pixels] = []
    step = max(1, len(names) // _SAMPLES)
    for name in names[::step][:_SAMPLES]:
        if (pixels := read(name)) is not None:
            found.append(pixels)
            if not is_label_map(pixels):
                break
    return found


def _have_few_values(samples: Sequence[Pixels]) -> bool:
    """Check for label maps, of which not all are flat."""
    is_varied = any((pixels[:, 0, 0] != pixels.reshape(len(pixels), -1).T).any() for pixels in samples)
    return is_varied and all(map(is_label_map, samples))


def _are_values_of_labels(samples: Iterable[Pixels]) -> bool:
    numbers: set[int] = set()
    for pixels in samples:
        if len(pixels) == 3:
            contrast = np.ptp(pixels.reshape(3, -1).astype(int), axis=1).max()
            if 0 < contrast < _LEAST_CONTRAST:
                return False
        else:
            numbers.update(np.unique(pixels).tolist())
    if not numbers:
        return True
    return len(numbers) <= MAX_LABELS and min(numbers) in (0, 1) and (max(numbers) == 255 or max(numbers) <= MAX_LABELS)


def is_label_map(pixels: Pixels) -> bool:
    """Check whether a tile [bands, height, width] holds class numbers or colours of classes: few values.

    Only integer tiles of one band, or of three bands with 8 bits, can be label maps. A tile of one value is one.
    """
    if not (pixels.dtype.kind in "uib" and (len(pixels) == 1 or (len(pixels) == 3 and pixels.dtype == np.uint8))):
        return False
    step = max(1, -(-max(pixels.shape[1:]) // _CHECKED_SIDE))
    part = pixels[:, ::step, ::step].astype(np.int64)
    values = part[0] if len(part) == 1 else (part[0] << 16) + (part[1] << 8) + part[2]
    most = max(1, min(MAX_LABELS, values.size // _MIN_PIXELS_PER_LABEL))
    return bool(len(np.unique(values)) <= most)
