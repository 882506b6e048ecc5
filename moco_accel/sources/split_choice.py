"""Choose the files of one split: that of `data.split`, of `PATH:split`, or the only one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moco_accel.common.errors import UserError
from moco_accel.images.splits import find_splits, is_split, split_of_folder
from moco_accel.sources.base import Source

_MAX_NAMED = 5


@dataclass(frozen=True)
class SplitChoice:
    """Which split of a source is read.

    Attributes:
        split: None for the only one.
        is_own: The split is part of the source's name, and must be there.
        log: Receives a line about files that are left out.
    """

    source: Source
    split: str | None
    is_own: bool
    log: Callable[[str], None]

    def choose_images(
        self, names: Sequence[str], all_images: str | None, paths: Sequence[str] | None = None
    ) -> list[str]:
        """Return the images of the split, if their names tell splits: two, or one above every image.

        Args:
            paths: Paths that tell the split of each of `names`; None for the names.
            all_images: Value of the source's field that takes all, "" if there is none; None if the user chose the
                files.

        Raises:
            UserError: If there are several splits and none was asked for, or if there is no such split.
        """
        paths = names if paths is None else paths
        splits = find_splits(paths)
        if not any(splits):
            above = [split_of_folder(os.path.dirname(path)) for path in paths]  # noqa: PTH120 - a million times
            splits = above if all(above) else splits
        return self.choose(names, splits, all_images, "image")

    def choose(self, names: Sequence[str], splits: Sequence[str], all_files: str | None, unit: str) -> list[str]:
        """Return the files of the split; `unit` is what is counted. Raises UserError as `choose_images` does."""
        counts = Counter(splits)
        if not names:
            return []
        if set(splits) == {""} and not self.is_own:
            if self.split and not is_split("train", self.split):
                self.log(f"{self.source}: no name tells a split; data.split={self.split!r} leaves nothing out")
            return list(names)
        if self.split is None and all_files is None and len(counts) > 1:  # the user's glob may take all
            self.log(f"{self.source}: all of {_describe(counts, unit)}; data.split takes one of them")
            return list(names)
        chosen = self.name_of(splits, all_files, unit)
        self.log_left_out(counts, chosen, unit)
        return [name for name, split in zip(names, splits, strict=True) if split == chosen]

    def name_of(self, splits: Sequence[str], all_files: str | None, unit: str) -> str:
        """Return which of `splits` is read, one for each file ("" for a file whose name tells none).

        Raises:
            UserError: If there are several and none was asked for, or if there is no such split.
        """
        counts, split = Counter(splits), self.split
        found = next((name for name in counts if name == split), None)
        found = found or next((name for name in counts if split and name and is_split(name, split)), None)
        if found or (split is None and len(counts) == 1):
            return found or splits[0]
        first = min(filter(None, counts), key=lambda name: (not is_split(name, "train"), name), default="")
        path, field = self.source.path, self.source.field
        is_training = field in ("data.source", "SOURCE")  # not labelled tiles
        works = f"data.split={first or 'null'} works"
        if not is_training or not first:
            works = f"{field}={path}{f':{first}' if first else ''} works"
        there = _describe(counts, unit)
        if split is not None:
            asked = f"data.split={split!r}" if is_training else f"{field}={f'{path}:{split}'!r}: {split!r}"
            raise UserError(f"{asked} is not a split of {path!r}, which holds {there}; {works}")
        more = f", or {field}={all_files!r} for all" if all_files else ""
        raise UserError(
            f"{self.source} holds several splits, {there}{', and data.split=null' * is_training}; {works}{more}"
        )

    def log_left_out(self, counts: Counter[str], chosen: str, unit: str) -> None:
        """Log a line about the files of the other splits."""
        others = Counter({name: count for name, count in counts.items() if name != chosen})
        if others:
            read = _describe(Counter({chosen: counts[chosen]}), unit)
            self.log(f"{self.source}: {read}; left out: {_describe(others, unit)}")


def _describe(counts: Counter[str], unit: str) -> str:
    """Return "train (12 shards), test (3 shards)"."""
    named = [
        f"{name or 'no split'} ({count:,} {unit}{'s' * (count > 1)})" for name, count in counts.most_common(_MAX_NAMED)
    ]
    return ", ".join(named) + (f" … {len(counts) - _MAX_NAMED} more" if len(counts) > _MAX_NAMED else "")
