"""Kinds of imagery and splits in one folder, of which one can be built, and the options that select each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moco_accel.common.errors import UserError, count_of
from moco_accel.images.globs import any_matcher, find_globs
from moco_accel.images.products import products_of
from moco_accel.images.splits import find_splits
from moco_accel.recipe.bands import offer_bands
from moco_accel.scenes.find_scenes import Scene
from moco_accel.scenes.layouts import Layout
from moco_accel.scenes.pixel_types import tile_type

_MAX_NAMED, _MAX_GLOBS = 5, 4
_MOVE = "move them to a folder of their own"


@dataclass(frozen=True)
class SceneKind:
    """Scenes whose tiles fit together.

    Attributes:
        product: Words in their names by which they differ from other products of the same scenes.
    """

    layouts: list[Layout]
    windows: int
    product: str = ""

    def __str__(self) -> str:
        first = self.layouts[0]
        tags = "; ".join(dict.fromkeys(f"scale {scale:g}, offset {offset:g}" for scale, offset in first.scales))
        return f"{first}{f' ({tags})' if tags else ''}{f' ({self.product})' if self.product else ''}"


def unify_types(layouts: Sequence[Layout]) -> list[Layout]:
    """Return the scenes; those of one wide type and the same bands get one type of tiles, which holds all samples."""
    groups: dict[object, list[Layout]] = {}
    for layout in layouts:
        groups.setdefault((layout.bands, layout.unnamed, layout.stored_dtype), []).append(layout)
    types = {key: tile_type(key[-1], [x.sampled for x in group]) for key, group in groups.items() if key[-1]}  # type: ignore[index]
    return [replace(x, dtype=types.get((x.bands, x.unnamed, x.stored_dtype), x.dtype)) for x in layouts]


def sort_kinds(layouts: Sequence[Layout], windows: Sequence[int], by_product: bool) -> list[SceneKind]:
    """Sort scenes into kinds by bands, type, scale tags and product; the kind with most windows is first."""
    groups: dict[object, list[tuple[Layout, int]]] = {}
    for layout, count in zip(layouts, windows, strict=True):
        groups.setdefault((*layout.key, layout.scales), []).append((layout, count))
    kinds = []
    for group in groups.values():
        of_one_band = len(group[0][0].bands) == 1 or group[0][0].unnamed == 1
        names = [layout.scene.name for layout, _ in group]
        products = products_of(names, of_one_band) if by_product else [""] * len(group)
        for product in dict.fromkeys(products):
            members = [member for member, own in zip(group, products, strict=True) if own == product]
            kinds.append(SceneKind([layout for layout, _ in members], sum(count for _, count in members), product))
    return sorted(kinds, key=lambda kind: -kind.windows)


def check_one_kind(source: Path, kinds: Sequence[SceneKind], excluded: Sequence[str] = ()) -> None:
    """Raise UserError if there are several kinds; it shows each, and an option that selects it.

    Args:
        excluded: Files below `source` that no offered pattern may match.
    """
    if len(kinds) < 2:
        return
    shown = kinds[:_MAX_NAMED]
    texts = [
        f"{_count(x)} of {x}, e.g. {x.layouts[0].scene.name}: {_option(source, x, kinds, excluded)}" for x in shown
    ]
    more = f"; and {len(kinds) - _MAX_NAMED} more" if len(kinds) > _MAX_NAMED else ""
    raise UserError(
        f"SRC={str(source)!r} holds {len(kinds)} kinds of imagery, of which one can be built; choose with the option "
        f"behind it: {'; '.join(texts)}{more}"
    )


def _count(kind: SceneKind) -> str:
    files = sum(len(layout.scene.files) for layout in kind.layouts)
    return f"{count_of(files, 'file')} ({count_of(kind.windows, 'window')})"


def _option(source: Path, kind: SceneKind, kinds: Sequence[SceneKind], excluded: Sequence[str]) -> str:
    """Return an option that selects the scenes of a kind; it was tried on the names or bands of all kinds."""
    first = kind.layouts[0]
    having = [other for other in kinds if first.bands and set(first.bands) <= set(other.layouts[0].bands)]
    if having and all(
        (x.layouts[0].dtype, x.layouts[0].scales, x.product) == (first.dtype, first.scales, kind.product)
        for x in having
    ):
        return f"--bands {','.join(first.bands)}"
    root = source if source.is_dir() else source.parent
    rest = [name for other in kinds if other is not kind for name in files_of(root, scenes_of(other.layouts))]
    only = only_option(files_of(root, scenes_of(kind.layouts)), [*rest, *excluded])
    names = f" {offer_bands(first.unnamed)}" if first.unnamed else ""
    return only + names if only else _MOVE


def scenes_of(layouts: Sequence[Layout]) -> list[Scene]:
    """Return the scenes that have these layouts."""
    return [layout.scene for layout in layouts]


def files_of(root: Path, scenes: Sequence[Scene]) -> list[str]:
    """Return the paths of the scenes' files relative to `root`."""
    return [path.relative_to(root).as_posix() for scene in scenes for path in scene.files]


def only_option(wanted: Sequence[str], others: Sequence[str]) -> str:
    """Return `--only GLOB` options that match all of `wanted` and none of `others`; empty if no few ones do."""
    return _as_options(find_globs(wanted, others, _MAX_GLOBS))


def _as_options(globs: Sequence[str]) -> str:
    return " ".join(f"--only {shlex.quote(pattern)}" for pattern in globs)


def check_one_split(source: Path, scenes: Sequence[Scene]) -> None:
    """Raise UserError if the names of files tell several splits; it counts each, and has an option that selects it."""
    names = files_of(source if source.is_dir() else source.parent, scenes)
    groups: dict[str, list[str]] = {}
    for name, split in zip(names, find_splits(names), strict=True):
        groups.setdefault(split, []).append(name)
    if len(groups) < 2:
        return
    texts = []
    for split, members in groups.items():
        others = [name for other, found in groups.items() if other != split for name in found]
        option = only_option(members, others) or _as_options(_globs_of_word(split, members, others)) or _MOVE
        texts.append(f"{count_of(len(members), 'file')} of {split or 'no split'}, e.g. {members[0]}: {option}")
    raise UserError(
        f"SRC={str(source)!r} holds several splits, which are seldom built together; choose with the option behind it: "
        f"{'; '.join(texts)}; --only '*' takes all"
    )


def _globs_of_word(word: str, wanted: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return globs of names, or of folders, that hold a word wherever `wanted` has it."""
    spelled = sorted({found[0] for name in wanted for found in re.finditer(re.escape(word), name, re.I) if word})
    for globs in ([f"*{x}*" for x in spelled], [f"**/*{x}*/**/*" for x in spelled]):
        matches = any_matcher(globs)
        if all(map(matches, wanted)) and not any(map(matches, others)):
            return globs
    return []
