"""Where the tiles lie: from the columns `crs` and `bounds` (left, bottom, right, top) that `moco-data build` writes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moco_accel.tiles.tiles import Tiles

CRS_COLUMN, BOUNDS_COLUMN = "crs", "bounds"


@dataclass(frozen=True)
class Extent:
    """All tiles of one coordinate reference system; edges in its units."""

    crs: str
    tiles: int
    left: float
    bottom: float
    right: float
    top: float

    def as_fields(self) -> dict[str, Any]:
        return asdict(self)


def extents_of(tiles: Tiles) -> list[Extent]:
    """One per coordinate reference system, most tiles first; none where no column says where tiles lie."""
    if BOUNDS_COLUMN not in tiles.column_names:
        return []
    bounds = tiles.column(BOUNDS_COLUMN)
    names = tiles.column(CRS_COLUMN) if CRS_COLUMN in tiles.column_names else [None] * len(bounds)
    found: dict[str, list[list[float]]] = {}
    for name, edges in zip(names, bounds, strict=True):
        if edges is not None and len(edges) == 4:
            found.setdefault(name or "unknown", []).append(edges)
    extents = [_around(name, edges) for name, edges in found.items()]
    return sorted(extents, key=lambda extent: -extent.tiles)


def _around(crs: str, bounds: list[list[float]]) -> Extent:
    left, bottom, right, top = zip(*bounds, strict=True)
    return Extent(crs, len(bounds), min(left), min(bottom), max(right), max(top))
