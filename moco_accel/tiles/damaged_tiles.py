"""Replace damaged tiles by the next readable ones, list them in the run's folder, and count them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from rich.markup import escape

from moco_accel.common.console import console
from moco_accel.images.headers import DamagedTile
from moco_accel.recipe.schema import Recipe

DAMAGED_TILES_FILE = "damaged_tiles.jsonl"

T = TypeVar("T")

DamageRecord = tuple[int, str]
"""A tile's index in the source, and the reason why it cannot be used."""


def max_damaged_tiles(recipe: Recipe, tile_count: int) -> int:
    """Return how many of all tiles may be damaged before a run stops; at least one must be readable."""
    return min(int(recipe.data.max_damaged_share * tile_count), tile_count - 1)


def read_or_replace(
    read: Callable[[int], T], index: int, tile_count: int, max_damaged: int
) -> tuple[T | None, list[DamageRecord]]:
    """Read tile `index`, or the next readable one.

    The replacement depends on the tiles alone: it is the same on every process, in every epoch and after a resume.

    Returns:
        What `read` returned, or None after more than `max_damaged` damaged tiles; and the damaged tiles on the way.
    """
    damaged: list[DamageRecord] = []
    while len(damaged) <= max_damaged:
        tile = (index + len(damaged)) % tile_count
        try:
            return read(tile), damaged
        except DamagedTile as reason:
            damaged.append((tile, str(reason)))
    return None, damaged


class DamageLog:
    """Damaged tiles that any process of a run found, in `run/damaged_tiles.jsonl`.

    A process reads the file whenever it finds a new one. Create it before the first barrier: rank 0 deletes the file of
    an earlier run.
    """

    def __init__(self, recipe: Recipe, tile_count: int, run: Path, resumed: bool, first: bool) -> None:
        self._recipe, self._tile_count, self._path, self._first = recipe, tile_count, run / DAMAGED_TILES_FILE, first
        self._max_damaged = max_damaged_tiles(recipe, tile_count)
        if first and not resumed:
            self._path.unlink(missing_ok=True)
        self._known = self._read_file() if resumed else set()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, damaged: Iterable[DamageRecord]) -> None:
        """Add the damaged tiles of a micro-batch; warn of the run's first one."""
        found = {index: reason for index, reason in damaged if index not in self._known}
        if not found:
            return
        self._known |= self._read_file()
        new = {index: reason for index, reason in found.items() if index not in self._known}
        if new and self._first and not self._known:
            index, reason = next(iter(new.items()))
            console.print(
                f"[yellow]tile {index} {escape(reason)}; the next readable tile replaces it. All such tiles: "
                f"{escape(str(self._path))}[/]",
                soft_wrap=True,
            )
        self._known |= set(new)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:  # in one write: other processes append, too
            file.write("".join(json.dumps({"tile": index, "reason": reason}) + "\n" for index, reason in new.items()))

    @property
    def too_many(self) -> bool:
        """Whether more tiles are damaged than `data.max_damaged_share` allows."""
        return len(self._known) > self._max_damaged

    def explain(self) -> str:
        """Return why a run stops, in one line."""
        self._known |= self._read_file()
        data, share = self._recipe.data, len(self._known) / self._tile_count
        return (
            f"data.max_damaged_share={data.max_damaged_share:g} allows {self._max_damaged} damaged tiles of "
            f"{self._tile_count} in data.source={data.source!r}, and {len(self._known)} were found; {self._path} lists "
            f"them. Rebuild the tiles without them, or data.max_damaged_share={min(1.0, 2 * share):.2g} continues"
        )

    def _read_file(self) -> set[int]:
        tiles = set()
        for row in self._path.read_text().splitlines() if self._path.is_file() else []:
            # a killed process leaves a part of a row, to which another process may append
            with contextlib.suppress(ValueError):
                tiles.add(int(json.loads(row)["tile"]))
        return tiles
