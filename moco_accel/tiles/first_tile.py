"""Find the first readable tile of a source, and read the band names and the nodata value that the source declares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.images.gdal import band_descriptions, nodata_tag
from moco_accel.images.headers import DamagedTile
from moco_accel.images.kinds import image_kind
from moco_accel.recipe.bands import canonical_bands
from moco_accel.sources.base import Store
from moco_accel.tiles.read_tile import TileColumns, check_tile, dtype_name, encoded_bytes, read_tile

_PICTURE_BANDS = {1: ["grey"], 2: ["grey", "alpha"], 3: ["red", "green", "blue"], 4: ["red", "green", "blue", "alpha"]}
_MAX_TRIED_TILES = 20
_MAX_REASONS = 3


@dataclass(frozen=True)
class FirstTile:
    """The tile that all others must match in type and number of bands.

    Attributes:
        pixels: [bands, height, width].
        files: Encoded images, one per column; none of an Array3D.
    """

    pixels: Tensor
    files: list[bytes]


def find_first_tile(store: Store, columns: TileColumns) -> FirstTile:
    """Return the first readable tile; but if that is a grey picture, a colour picture among the first tiles.

    Raises:
        UserError: If none of the first tiles can be read.
    """
    reasons: list[str] = []
    readable = _readable_tiles(store, columns, reasons)
    first = next(readable, None)
    if first is None:
        raise UserError(
            f"{store.source}: none of its first {len(reasons)} tiles can be read; rebuild them. "
            f"{'; '.join(reasons[:_MAX_REASONS])}" + ("; …" if len(reasons) > _MAX_REASONS else "")
        )
    is_picture = columns.bands is None and columns.array_shape is None
    may_be_colour = store.metadata is None or len(store.metadata.bands) == 3
    if is_picture and may_be_colour and is_uint8(first[1], 1):
        first = next((other for other in readable if is_uint8(other[1], 3)), first)
    index, pixels = first
    values = store.values(columns.names, index) if columns.array_shape is None else []
    return FirstTile(pixels, [encoded_bytes(value) for value in values])


def _readable_tiles(store: Store, columns: TileColumns, reasons: list[str]) -> Iterator[tuple[int, Tensor]]:
    """Yield the readable ones of the first tiles; append to `reasons` why others are not."""
    for index in range(min(len(store), _MAX_TRIED_TILES)):
        try:
            tile = read_tile(store, columns, index)
            check_tile(tile, tile.shape[0], tile.dtype)
        except DamagedTile as error:
            reasons.append(f"tile {index} {error}: {store.location(index)}")
        else:
            yield index, tile


def is_uint8(tile: Tensor, bands: int) -> bool:
    """Check for an 8-bit tile of this many bands."""
    return tile.dtype == torch.uint8 and len(tile) == bands


def read_band_names(store: Store, first: FirstTile) -> list[str] | None:
    """Return the band names in the source's metadata, else in the first tile's file; None if neither has any.

    Raises:
        UserError: If the metadata contradict the tile.
    """
    metadata, count, dtype = store.metadata, len(first.pixels), dtype_name(first.pixels.dtype)
    if metadata is None:
        return _names_in_file(first)
    if len(metadata.bands) != count or metadata.dtype != dtype:
        raise UserError(
            f"{store.source} declares {metadata.dtype} bands [{', '.join(metadata.bands)}], but its tiles have "
            f"{count} bands of {dtype}; rebuild them, or remove tiles.json"
        )
    return metadata.bands


def _names_in_file(first: FirstTile) -> list[str] | None:
    if not first.files:
        return None
    raw, count = first.files[0], len(first.pixels)
    kind = image_kind(raw)
    if kind in ("jpeg", "png", "png16"):
        return _PICTURE_BANDS.get(count)
    if kind == "npy":
        return None
    # elevation is no grey, reflectance no colour
    is_picture = is_uint8(first.pixels, 1) or is_uint8(first.pixels, 3)
    return _raster_band_names(raw, count) or (_PICTURE_BANDS[count] if is_picture else None)


def _raster_band_names(raw: bytes, count: int) -> list[str] | None:
    try:
        descriptions = band_descriptions(raw)
    except UserError:  # no rasterio: a plain RGB tile is read without it
        return None
    is_named = len(descriptions) == count and all(descriptions)  # a colour table is one band in the file
    return canonical_bands([text for text in descriptions if text]) if is_named else None


def read_nodata(store: Store, first: FirstTile) -> float | None:
    """Return the nodata value in the source's metadata, else in a GeoTIFF's tag; None if there is none.

    Tags of 8-bit tiles are not read.

    Raises:
        UserError: If the files of one tile declare two values.
    """
    if store.metadata is not None:
        return store.metadata.nodata
    if first.pixels.dtype == torch.uint8:
        return None
    found = sorted({number for raw in first.files if (number := nodata_tag(raw)) is not None})
    if len(found) > 1:
        raise UserError(
            f"data.nodata=null, and the bands of {store.source.path!r} declare "
            f"{' and '.join(f'{number:g}' for number in found)}; "
            f"data.nodata={found[0]:g} works, or tiles of moco-data build"
        )
    return found[0] if found else None
