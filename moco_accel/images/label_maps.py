"""Tell masks, label maps and quick-looks from imagery: by their names, and by their values."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePath

import numpy as np

from moco_accel.common.pixels import Pixels
from moco_accel.images.decoding import decode_image
from moco_accel.images.headers import DamagedTile, read_file

MAX_LABELS = 16  # values of a label map; more are a dark or a flat picture's
_MIN_PIXELS_PER_LABEL = 16  # the few pixels of a small picture have few values, too
_SAMPLES = 3  # files of each folder that are decoded
_MAX_DECODED_BYTES = 1 << 24  # of a file; larger ones are scenes, whose names are believed
_MAX_COLOURS = 256  # of a label map, blurred edges included
_CHECKED_SIDE = 512  # pixels; every n-th one of larger tiles

_WORDS = r"[a-z]*masks?|labels?|labelids|annotations?|gt|ground[_-]?truths?|seg|segmentations?|udm2?|bqa|scl"
_MASK_FOLDER = re.compile(rf"(?:{_WORDS}|ann|qa|segmentation(?:class|object))(?:[_. -].*)?|.*[_. -](?:{_WORDS})", re.I)
# scene_mask, scene_mask_01, mask_R1C2, 1_3B_AnalyticMS_DN_udm, LC08_…_QA_PIXEL
_MASK_STEM = re.compile(
    rf"(?:.*[_. -])?(?:(?:{_WORDS})(?:[_. -]\d+m?)*|(?:masks?|labels?)\d+|qa(?:60|[_-](?:pixel|radsat|aerosol))?)"
    r"|(?:masks?|labels?|gt|seg)(?:[_. -][a-z]*\d[a-z\d]*)+",
    re.I,
)
_MASK_HINT = re.compile("mask|label|ann|gt|truth|seg|udm|qa|scl", re.I)  # in every such name; most names have none
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


def confirm_masks(root: Path, masks: Sequence[str]) -> list[str]:
    """Return those of `masks` below `root` that are no colour pictures: a class may be called `labels` or `mask`.

    A few files of each folder are decoded; a folder with a picture of many colours holds imagery.
    """
    by_folder: dict[str, list[str]] = {}
    for name in masks:
        by_folder.setdefault(os.path.dirname(name), []).append(name)  # noqa: PTH120 - a million times
    pictures = {folder for folder, names in by_folder.items() if any(_is_picture(root / x) for x in names[:_SAMPLES])}
    return [name for name in masks if os.path.dirname(name) not in pictures]  # noqa: PTH120


def _is_picture(path: Path) -> bool:
    with suppress(DamagedTile, OSError):
        if path.stat().st_size <= _MAX_DECODED_BYTES:
            pixels = decode_image(read_file(path), keep_alpha=False).pixels
            return len(pixels) == 3 and np.unique(pixels.reshape(3, -1), axis=1).shape[1] > _MAX_COLOURS
    return False


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
