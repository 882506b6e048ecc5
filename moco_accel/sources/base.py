"""What every kind of source offers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from moco_accel.sources.tile_facts import TileFacts


@dataclass(frozen=True)
class Reading:
    """How a source is best read: tiles lie in units (row groups of shards) of `units[i]` tiles, which are read whole.

    A window of about `window` tiles is shuffled at a time, whose units a reader can hold. Without units any tile is as
    near as any other.
    """

    units: Sequence[int] = ()
    window: int = 0


SHARDS = (".parquet", ".arrow", ".tar")


IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".jp2", ".npy")


class Store(Protocol):
    """Rows at random. Light to send to loader workers: what is open is opened again where it is read.

    `features` are those of `datasets`, by column; `shard_sizes` rows per file.
    """

    features: dict[str, Any]
    shard_sizes: list[int]
    facts: TileFacts | None

    def __len__(self) -> int: ...

    def values(self, columns: Sequence[str], index: int) -> list[Any]:
        """Of one row: arrow scalars or bytes; None where there is nothing. Raises DamagedTile."""

    def at_random(self) -> Store:
        """The store to train from: what is slow to read at random is prepared first. Raises UserError."""

    def column(self, name: str) -> list[Any]:
        """All rows' values, as Python objects."""

    def where(self, index: int) -> str:
        """For a person: the file, and which row of it."""

    def reading(self, columns: Sequence[str]) -> Reading:
        """How rows are best read in an order drawn at random. Raises UserError."""


class PackedNames:
    """Many names in two objects: a list of a million would grow in every loader worker that counts references."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])
