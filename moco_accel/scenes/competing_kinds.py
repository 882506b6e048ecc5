"""Kinds of imagery in one folder: scenes whose tiles do not fit together, and the options that select one kind."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import example_bands
from moco_accel.scenes.find_scenes import matches
from moco_accel.scenes.layouts import Layout
from moco_accel.scenes.pixel_types import tile_type

_MAX_NAMED, _MAX_GLOBS = 5, 4
_SEPARATORS = "_-. "
# words that tell two products of one scene apart: processing levels, kinds of units, pixel sizes
_PRODUCT_WORD = re.compile(
    r"sr|boa|toa|toar|dn|rad|radiance|reflectance|visual|analytic|analyticms|pansharpened|pan|harmoni[sz]ed|udm2?"
    r"|(?:msi)?l[12][abc]|l[12](?:tp|gt|gs|sp|sr)|\d{1,4}(?:\.\d+)?m",
    re.I,
)


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
        products = _products([layout for layout, _ in group]) if by_product else [""] * len(group)
        for product in dict.fromkeys(products):
            members = [member for member, own in zip(group, products, strict=True) if own == product]
            kinds.append(SceneKind([layout for layout, _ in members], sum(count for _, count in members), product))
    return sorted(kinds, key=lambda kind: -kind.windows)


def _products(layouts: Sequence[Layout]) -> list[str]:
    """Return the product of each scene; all empty unless two scenes have one name but for the words of products."""
    names = [_split_name(layout.scene.name) for layout in layouts]
    found: dict[str, set[str]] = {}
    for base, product in names:
        found.setdefault(base, set()).add(product)
    several = any(len(products) > 1 for products in found.values())
    return [product or "no such word" for _, product in names] if several else [""] * len(names)


def _split_name(name: str) -> tuple[str, str]:
    """Return a scene's file name without the words of products, and these words in the whole path."""
    words = re.split(r"[/_\- ]", str(PurePosixPath(name).with_suffix("")))
    base = re.split(r"[_\- ]", PurePosixPath(name).stem)
    kept = "_".join(word for word in base if not _PRODUCT_WORD.fullmatch(word))
    return kept, " ".join(dict.fromkeys(word for word in words if _PRODUCT_WORD.fullmatch(word)))


def check_one_kind(source: Path, kinds: Sequence[SceneKind]) -> None:
    """Raise UserError if there are several kinds; it shows each, and an option that selects it."""
    if len(kinds) < 2:
        return
    shown = kinds[:_MAX_NAMED]
    texts = [f"{_count(x)} of {x}, e.g. {x.layouts[0].scene.name}: {_option(source, x, kinds)}" for x in shown]
    more = f"; and {len(kinds) - _MAX_NAMED} more" if len(kinds) > _MAX_NAMED else ""
    raise UserError(
        f"SRC={str(source)!r} holds {len(kinds)} kinds of imagery, of which one can be built; choose with the option "
        f"behind it: {'; '.join(texts)}{more}"
    )


def _count(kind: SceneKind) -> str:
    files = sum(len(layout.scene.files) for layout in kind.layouts)
    return f"{count_of(files, 'file')} ({count_of(kind.windows, 'window')})"


def count_of(number: int, what: str) -> str:
    """Return `1 file`, or `1,200 files`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _option(source: Path, kind: SceneKind, kinds: Sequence[SceneKind]) -> str:
    """Return an option that selects the scenes of a kind; it was tried on the names or bands of all kinds."""
    first = kind.layouts[0]
    having = [other for other in kinds if first.bands and set(first.bands) <= set(other.layouts[0].bands)]
    if having and all(
        (x.layouts[0].dtype, x.layouts[0].scales, x.product) == (first.dtype, first.scales, kind.product)
        for x in having
    ):
        return f"--bands {','.join(first.bands)}"
    root = source if source.is_dir() else source.parent
    rest = [name for other in kinds if other is not kind for name in files_of(root, other.layouts)]
    globs = find_globs(files_of(root, kind.layouts), rest)
    names = f" --band-names {example_bands(first.unnamed)}" if first.unnamed else ""
    return globs + names if globs else "move them to a folder of their own"


def files_of(root: Path, layouts: Sequence[Layout]) -> list[str]:
    """Return the paths of the scenes' files relative to `root`."""
    return [path.relative_to(root).as_posix() for layout in layouts for path in layout.scene.files]


def find_globs(wanted: Sequence[str], others: Sequence[str]) -> str:
    """Return `--only GLOB` options that match all of `wanted` and none of `others`; empty if no short ones do."""
    for globs in _candidates(wanted):
        is_short = len(globs) <= _MAX_GLOBS and all(matches(name, globs) for name in wanted)
        if is_short and not any(matches(name, globs) for name in others):
            return " ".join(f"--only '{pattern}'" for pattern in globs)
    return ""


def _candidates(wanted: Sequence[str]) -> Iterator[list[str]]:
    paths = [PurePosixPath(name) for name in wanted]
    tops = sorted({path.parts[0] for path in paths if len(path.parts) > 1})
    folders = [f"{glob.escape(top)}/*" for top in tops]
    shared = set.intersection(*(set(path.parts[:-1]) for path in paths))
    names = [path.name for path in paths]
    ending = _from_separator(os.path.commonprefix([name[::-1] for name in names]))[::-1]  # noqa: RUF071 - characters
    beginning = _from_separator(os.path.commonprefix(names))  # noqa: RUF071 - characters are compared
    suffixes = [f"*{glob.escape(suffix)}" for suffix in sorted({path.suffix for path in paths})]
    endings = [f"*{glob.escape(ending)}"]
    beginnings = [f"{'*/' if tops else ''}{glob.escape(beginning)}*"]
    if len(names) == 1:
        yield [glob.escape(wanted[0])]
    yield folders
    yield from ([f"*/{glob.escape(part)}/*"] for part in sorted(shared))
    if len(ending) > len(paths[0].suffix):
        yield endings
    if beginning:
        yield beginnings
    yield suffixes
    if ending:
        yield [f"{folder}{glob.escape(ending)}" for folder in folders]
    if len(wanted) <= _MAX_GLOBS:
        yield [glob.escape(name) for name in wanted]


def _from_separator(text: str) -> str:
    """Return a common beginning up to its last separator, which is kept."""
    return text[: max(text.rfind(separator) for separator in _SEPARATORS) + 1]
