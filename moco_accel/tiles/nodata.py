"""Which number is stored where a source has no data: as the recipe says, else its facts, else a GeoTIFF's own tag."""

from __future__ import annotations

import torch

from moco_accel.common.errors import UserError
from moco_accel.images.decoding import nodata_tag
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.base import Store
from moco_accel.tiles.columns import TileColumns
from moco_accel.tiles.tile_bytes import first_bytes


def nodata_of(
    store: Store, columns: TileColumns, index: int, dtype: torch.dtype, data: Data, source: str
) -> float | None:
    """None where nothing says so. `index` is a good tile's, of stored type `dtype`; tags of 8-bit tiles are not read.

    Raises UserError when a tile's files declare two numbers.
    """
    if data.nodata is not None:
        return data.nodata
    if store.facts is not None:
        return store.facts.nodata
    if dtype == torch.uint8 or columns.array_shape is not None:
        return None
    files = (first_bytes(value, "") for value in store.values(columns.names, index))
    found = sorted({number for raw in files if (number := nodata_tag(raw)) is not None})
    if len(found) > 1:
        raise UserError(
            f"data.nodata=null, and the bands of {source!r} declare {' and '.join(f'{number:g}' for number in found)}; "
            f"data.nodata={found[0]:g} works, or tiles of moco-data build"
        )
    return found[0] if found else None
