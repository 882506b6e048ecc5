"""Damaged tiles: each replaced by the next good one, counted, listed in the run's folder; too many stop the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from rich.markup import escape

from moco_accel.common.console import console
from moco_accel.images.decoding import DamagedTile
from moco_accel.recipe.schema import Recipe

DAMAGE_FILE = "damaged_tiles.jsonl"

T = TypeVar("T")

Damaged = tuple[int, str]
"""A tile's index in the source, and what is wrong with it."""


def allowed_damaged(recipe: Recipe, tile_count: int) -> int:
    """How many damaged tiles a run puts up with, of all in the source; one must be whole."""
    return min(int(recipe.data.max_damaged_share * tile_count), tile_count - 1)


def next_good(read: Callable[[int], T], index: int, tile_count: int, limit: int) -> tuple[T | None, list[Damaged]]:
    """`read(index)`, or of the next tile that is whole; and the damaged ones met. None after more than `limit` of them.

    The same on every process, in every epoch, and after a resume: it depends on the tiles alone.
    """
    damaged: list[Damaged] = []
    while len(damaged) <= limit:
        place = (index + len(damaged)) % tile_count
        try:
            return read(place), damaged
        except DamagedTile as reason:
            damaged.append((place, str(reason)))
    return None, damaged


class DamageLog:
    """What all processes of a run have met of damaged tiles, in `run/damaged_tiles.jsonl`.

    A process looks there whenever it meets a new one. Make it before the processes have met: the first one clears away
    the list of an earlier run.
    """

    def __init__(self, recipe: Recipe, tile_count: int, run: Path, resumed: bool, first: bool) -> None:
        self._recipe, self._tile_count, self._path, self._first = recipe, tile_count, run / DAMAGE_FILE, first
        if first and not resumed:
            self._path.unlink(missing_ok=True)
        self._known = self._listed() if resumed else set()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, damaged: Iterable[Damaged]) -> None:
        """Take in what a micro-batch met."""
        met = {index: reason for index, reason in damaged if index not in self._known}
        if not met:
            return
        self._known |= self._listed()
        new = {index: reason for index, reason in met.items() if index not in self._known}
        if new and self._first and not self._known:
            index, reason = next(iter(new.items()))
            console.print(
                f"[yellow]tile {index} {escape(reason)}; the next good one takes its place. All such: "
                f"{escape(str(self._path))}[/]",
                soft_wrap=True,
            )
        self._known |= set(new)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:  # in one piece: other processes write here, too
            file.write("".join(json.dumps({"tile": index, "reason": reason}) + "\n" for index, reason in new.items()))

    @property
    def too_many(self) -> bool:
        return len(self._known) > allowed_damaged(self._recipe, self._tile_count)

    def explain(self) -> str:
        """Why a run stops, in one line."""
        self._known |= self._listed()
        allowed, share = allowed_damaged(self._recipe, self._tile_count), len(self._known) / self._tile_count
        return (
            f"data.max_damaged_share={self._recipe.data.max_damaged_share:g} allows {allowed} damaged tiles of "
            f"{self._tile_count} in data.source={self._recipe.data.source!r}, and {len(self._known)} were met; "
            f"{self._path} lists them. Make the tiles again without them, or "
            f"data.max_damaged_share={min(1.0, 2 * share):.2g} goes on"
        )

    def _listed(self) -> set[int]:
        rows = self._path.read_text().splitlines() if self._path.is_file() else []
        return {tile for row in rows if (tile := _tile_of(row)) is not None}


def _tile_of(row: str) -> int | None:
    try:
        return int(json.loads(row)["tile"])
    except ValueError:  # a killed process may leave half a row, and another go on in it
        return None
