"""Find the first readable tile of a source, and read the band names that the source declares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moco_accel.common.errors import UserError
from moco_accel.images.gdal import band_descriptions
from moco_accel.images.headers import DamagedTile
from moco_accel.images.kinds import image_kind
from moco_accel.recipe.bands import canonical_bands
from moco_accel.sources.base import Store
from moco_accel.tiles.read_tile import TileColumns, check_side, encoded_bytes, read_images

_PICTURE_BANDS = {1: ["grey"], 2: ["grey", "alpha"], 3: ["red", "green", "blue"], 4: ["red", "green", "blue", "alpha"]}
_MAX_TRIED_TILES = 20
_MAX_REASONS = 3


@dataclass(frozen=True)
class FirstTile:
    """The tile that all others must match in type and number of bands.

    Attributes:
        dtype: NumPy name of its type, as stored.
        bands: Number of bands.
        files: Encoded images, one per column; none of an Array3D.
    """

    dtype: str
    bands: int
    files: list[bytes]

    def is_uint8(self, bands: int) -> bool:
        """Check for an 8-bit tile of this many bands."""
        return self.dtype == "uint8" and self.bands == bands


def find_first_tile(store: Store, columns: TileColumns, keep_alpha: bool) -> FirstTile:
    """Return the first readable tile; but if that is a grey picture, a colour picture among the first tiles.

    Raises:
        UserError: If none of the first tiles can be read.
    """
    reasons: list[str] = []
    readable = _readable_tiles(store, columns, keep_alpha, reasons)
    first = next(readable, None)
    if first is None:
        raise UserError(
            f"{store.source}: none of its first {len(reasons)} tiles can be read; rebuild them. "
            f"{'; '.join(reasons[:_MAX_REASONS])}" + ("; …" if len(reasons) > _MAX_REASONS else "")
        )
    is_picture = columns.bands is None and columns.array_shape is None
    may_be_colour = store.metadata is None or len(store.metadata.bands) == 3
    if is_picture and may_be_colour and first.is_uint8(1):
        first = next((other for other in readable if other.is_uint8(3)), first)
    return first


def _readable_tiles(store: Store, columns: TileColumns, keep_alpha: bool, reasons: list[str]) -> Iterator[FirstTile]:
    """Yield the readable ones of the first tiles; append to `reasons` why others are not."""
    for index in range(min(len(store), _MAX_TRIED_TILES)):
        try:
            images = read_images(store, columns, index, keep_alpha)
            for image in images:
                check_side(*image.pixels.shape[1:])
            dtype = images[0].pixels.dtype.name
            bands = len(images[0].pixels) if columns.bands is None else len(images)
            values = store.values(columns.names, index) if columns.array_shape is None else []
            tile = FirstTile(dtype, bands, [encoded_bytes(value) for value in values])
        except DamagedTile as error:
            reasons.append(f"tile {index} {error}: {store.location(index)}")
        else:
            yield tile


def read_band_names(store: Store, first: FirstTile, dtype: str) -> list[str] | None:
    """Return the band names in the source's metadata, else in the first tile's file; None if neither has any.

    Args:
        dtype: Type of the tiles.

    Raises:
        UserError: If the metadata contradict the tile.
    """
    metadata, count = store.metadata, first.bands
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
    raw, count = first.files[0], first.bands
    kind = image_kind(raw)
    if kind in ("jpeg", "png", "png16"):
        return _PICTURE_BANDS.get(count)
    if kind == "npy":
        return None
    # elevation is no grey, reflectance no colour
    is_picture = first.is_uint8(1) or first.is_uint8(3)
    return _raster_band_names(raw, count) or (_PICTURE_BANDS[count] if is_picture else None)


def _raster_band_names(raw: bytes, count: int) -> list[str] | None:
    try:
        descriptions = band_descriptions(raw)
    except UserError:  # no rasterio: a plain RGB tile is read without it
        return None
    if len(descriptions) == count + 1 and "alpha" in (descriptions[-1] or "alpha").lower():
        del descriptions[-1]  # it is left out of the tiles
    is_named = len(descriptions) == count and all(descriptions)  # a colour table is one band in the file
    return canonical_bands([text for text in descriptions if text]) if is_named else None
