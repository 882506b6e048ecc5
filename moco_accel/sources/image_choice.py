"""Choose the images of a source that make tiles: masks are left out, kinds that do not fit together are refused."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moco_accel.common.errors import UserError, count_of
from moco_accel.images.globs import find_globs
from moco_accel.images.image_kinds import COLOUR, GREY, ImageKind, Images
from moco_accel.images.label_maps import (
    confirm_masks,
    find_label_maps,
    find_masks,
    group_by_name,
    has_preview_name,
    have_few_values,
)
from moco_accel.sources.base import Source

MIN_SHARE = 0.01  # of the files: fewer of another kind are damaged tiles, which a run counts
_MAX_COPIES = 0.05  # of the files: a few may be empty sea
_MAX_NAMED = 5

Log = Callable[[str], None]
Offer = Callable[[Sequence[str], Sequence[str]], str]
"""Returns what selects some names and not others, as the end of a message; empty if nothing does."""


@dataclass(frozen=True)
class ImageChoice:
    """How the images of a source are chosen.

    Attributes:
        offer: What selects some images and not others.
        is_selected: The user selected images by a glob: what can be read as tiles of one source is then read.
        all_images: Value of the source's field that reads what its default asks about; None if there is none.
    """

    source: Source
    log: Log
    offer: Offer
    is_selected: bool = False
    all_images: str | None = None

    def choose(self, images: Images, are_tiles: bool = True) -> list[str]:
        """Return the names of the images that are tiles.

        Names tell masks and quick-looks, and the values of a sample tell label maps. `log` receives a line about those
        left out, about grey pictures beside colour, and about products that a glob takes together.

        Args:
            are_tiles: Each image is a tile, and not a band of one, which has a name of its own.

        Raises:
            UserError: If kinds of images compete. The message has the count, an example and, where there is one, what
                selects each.
        """
        if not images.names:
            return []
        images = self._leave_out(images, confirm_masks(find_masks(images.names), images.pixels), "the names of masks")
        previews = [name for name in images.names if has_preview_name(name)]
        if len(previews) < len(images.names):
            images = self._leave_out(images, previews, "the names of quick-looks")
        sample = images.look(are_tiles)
        kinds = sample.kinds
        if not are_tiles:
            kinds = {name: replace(kind, names=()) for name, kind in kinds.items()}
        if self.is_selected:
            kinds = self._join_products(kinds)
        if labels := set(find_label_maps(list(kinds), kinds.__getitem__, images.pixels)):
            maps = _spread(labels, kinds.keys() - labels, images.names)
            images = self._leave_out(images, maps, "few values, which masks and label maps have,")
            kinds = {name: kind for name, kind in kinds.items() if name not in labels}
        self.check_one_kind(kinds)
        copies = sample.copies_among(images.names)
        if len(copies) > _MAX_COPIES * len(images.names):
            self.log(
                f"{self.source}: {len(copies):,} of {len(images.names):,} images are copies of others, byte for byte, "
                f"e.g. {copies[0][1]} of {copies[0][0]}"
            )
        if have_few_values(list(kinds), images.pixels):
            self.log(f"{self.source}: its images have few values, as masks and label maps do, e.g. {min(kinds)}")
        return list(images.names)

    def _leave_out(self, images: Images, names: Sequence[str], with_what: str) -> Images:
        if not names:
            return images
        left = images.without(set(names))
        first = min(names)
        group = next(group for group in group_by_name(names).values() if first in group)
        offered = self.offer(group, left.names)
        verb = "is" if len(names) == 1 else "are"
        reads = f"; {offered} reads such" if offered else ""
        self.log(
            f"{self.source}: {count_of(len(names), 'image')} with {with_what} {verb} left out, e.g. {first}{reads}"
        )
        return left

    def _join_products(self, kinds: dict[str, ImageKind]) -> dict[str, ImageKind]:
        joined = {name: replace(kind, product="") for name, kind in kinds.items()}
        for kind in set(joined.values()):
            products = sorted({kinds[name].product for name, own in joined.items() if own == kind})
            if len(products) > 1:
                self.log(f"{self.source}: products of the same scenes are read together: {', '.join(products)}")
        return joined

    def check_one_kind(self, kinds: dict[str, ImageKind]) -> None:
        """Raise UserError if the images of a sample are of several kinds; a few odd ones are damaged tiles."""
        groups: dict[ImageKind, list[str]] = {}
        for name, kind in sorted(kinds.items()):
            groups.setdefault(kind, []).append(name)
        grey, colour = groups.get(GREY, []), groups.get(COLOUR, [])
        if grey and colour and (self.is_selected or not _are_apart(grey, colour)):
            self.log(
                f"{self.source}: {len(grey):,} of {len(grey) + len(colour):,} sampled images are grey, and are "
                f"read as colour; e.g. {grey[0]}"
            )
            groups[COLOUR] = sorted([*colour, *groups.pop(GREY)])
        least = MIN_SHARE * len(kinds)
        competing = {
            kind: names
            for kind, names in groups.items()
            if len(names) > least or any(kind.has_other_names(other) for other in groups)
        }
        if len(competing) > 1:
            raise UserError(self._refusal(competing, groups, len(kinds)))

    def _refusal(self, competing: dict[ImageKind, list[str]], groups: dict[ImageKind, list[str]], total: int) -> str:
        texts = []
        for kind, names in sorted(competing.items(), key=lambda item: -len(item[1]))[:_MAX_NAMED]:
            others = [name for other, found in groups.items() if other != kind for name in found]
            offered = self.offer(names, others)
            works = f": {offered} works" if offered else ", which need a source of their own"
            texts.append(f"{len(names):,} of {kind}, e.g. {names[0]}{works}")
        can_be_mixed = self.all_images and competing.keys() <= {GREY, COLOUR}
        more = f"; {self.source.field}={self.all_images!r} reads all, grey as colour" if can_be_mixed else ""
        return (
            f"{self.source} holds {len(competing)} kinds of images, of which one can be read "
            f"({total:,} files were looked at): {'; '.join(texts)}{more}"
        )


def offer_glob(folder: Path, source: Source) -> Offer:
    """Return a function that offers the value of a source with a glob of files below a folder."""
    root = glob.escape(str(folder)) if glob.has_magic(str(folder)) else str(folder)

    def offer(wanted: Sequence[str], others: Sequence[str]) -> str:
        found = find_globs(wanted, others)
        return f"{source.field}={f'{root}/{found[0]}'!r}" if found else ""

    return offer


def offer_shards(folder: Path, source: Source, wanted: Sequence[str], others: Sequence[str]) -> str:
    """Offer the shards below a folder that hold all the wanted images, `SHARD/…`, and no others; or ""."""
    shards, rest = ({name.split("/")[0] for name in names} for names in (wanted, others))
    return "" if shards & rest else offer_glob(folder, source)(sorted(shards), sorted(rest))


def _spread(labels: set[str], pictures: set[str], names: Sequence[str]) -> list[str]:
    """Return the label maps among all names: those of the sample, and those whose group of names holds no others."""
    spread = set(labels)
    for group in group_by_name(names).values():
        if not labels.isdisjoint(group) and pictures.isdisjoint(group):
            spread.update(group)
    return [name for name in names if name in spread]


def _are_apart(grey: Sequence[str], colour: Sequence[str]) -> bool:
    """Check whether the names of two kinds differ by more than numbers."""
    groups = group_by_name([*grey, *colour]).values()
    return all(set(group).isdisjoint(grey) or set(group).isdisjoint(colour) for group in groups)
