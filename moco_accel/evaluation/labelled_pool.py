"""All labelled tiles of an evaluation under one numbering, whichever sources and sides they are of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from moco_accel.tiles.tiles import Tiles


@dataclass(frozen=True)
class Pool:
    """Tiles of `sources`, one source after another; labels int64 [N] are indices into `names`.

    What reads `Tiles` by index and asks for bands and sensor reads a pool as well.
    """

    sources: tuple[Tiles, ...]
    labels: Tensor
    names: list[str]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Tensor:
        for source in self.sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)

    @property
    def bands(self) -> list[str] | None:
        return self.sources[0].bands

    @property
    def sensor(self) -> str | None:
        return self.sources[0].sensor
