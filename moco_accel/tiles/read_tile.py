"""Read one tile from the columns of a store, and check it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from moco_accel.common.errors import error_reason
from moco_accel.common.pixels import Pixels
from moco_accel.images.decoded import DecodedImage
from moco_accel.images.decoding import decode_image
from moco_accel.images.headers import MAX_TILE_BYTES, DamagedTile, read_file
from moco_accel.sources.base import Store
from moco_accel.tiles.stored_values import ValueRules

_MIN_SIDE = 8  # pixels


@dataclass(frozen=True)
class TileColumns:
    """Columns that make a tile.

    Attributes:
        names: One column with all bands, or one column for each of `bands`.
        array_shape: Shape of an Array3D column; None for encoded images.
        bands_last: Whether the last axis of an Array3D holds the bands.
        stored_bands: Number of bands in the column, if the source's metadata or the recipe tell it; it shows which
            axis of an .npy holds the bands.
    """

    names: tuple[str, ...]
    bands: tuple[str, ...] | None = None
    array_shape: tuple[int | None, ...] | None = None
    bands_last: bool = False
    stored_bands: int | None = None


def read_tile(store: Store, columns: TileColumns, index: int, rules: ValueRules) -> Tensor:
    """Return a tile [bands, height, width], its values as `rules` read them.

    Raises:
        DamagedTile: If it is missing, cannot be decoded, or does not fit the rules.
    """
    images = read_images(store, columns, index, rules.keep_alpha)
    if columns.bands is None:
        return torch.from_numpy(rules.read(images[0]))
    layers = []
    for image, name in zip(images, columns.names, strict=True):
        if len(image.pixels) != 1:
            raise DamagedTile(f"{name} has {len(image.pixels)} bands, not 1")
        try:
            layers.append(torch.from_numpy(rules.read(image)))
        except DamagedTile as reason:
            raise DamagedTile(f"{name} {reason}") from None
    return _stack_layers(layers, rules.nodata)


def read_images(store: Store, columns: TileColumns, index: int, keep_alpha: bool) -> list[DecodedImage]:
    """Return what the columns of a tile hold, as stored: one image, or one for each band.

    Raises:
        DamagedTile: If one is missing or cannot be decoded.
    """
    values = store.values(columns.names, index)
    if columns.array_shape is not None:
        return [DecodedImage(_read_array(values[0], columns))]
    if columns.bands is None:
        return [decode_image(encoded_bytes(values[0]), columns.stored_bands, keep_alpha)]
    images = []
    for value, name in zip(values, columns.names, strict=True):
        try:
            raw = encoded_bytes(value)
        except DamagedTile as reason:
            raise DamagedTile(f"{name} {reason}") from None
        images.append(decode_image(raw, 1, keep_alpha))
    return images


def check_tile(tile: Tensor, bands: int, dtype: torch.dtype) -> None:
    """Check that a tile [bands, height, width] matches the others of its source.

    Raises:
        DamagedTile: If type, number of bands or size are wrong, or if no pixel of a float tile has data.
    """
    if tile.dtype != dtype:
        raise DamagedTile(f"is {dtype_name(tile.dtype)}, not {dtype_name(dtype)}")
    if tile.shape[0] != bands:
        raise DamagedTile(f"has {tile.shape[0]} bands, not {bands}")
    check_side(*tile.shape[1:])
    if tile.is_floating_point() and not torch.isfinite(tile).all(dim=0).any():
        raise DamagedTile("holds no pixel with data in all bands: all are NaN, infinite or the number for no data")


def check_side(height: int, width: int) -> None:
    """Raise DamagedTile if a tile is too small."""
    if min(height, width) < _MIN_SIDE:
        raise DamagedTile(f"has the wrong size ({height} x {width} pixels; at least {_MIN_SIDE} a side)")


def dtype_name(dtype: torch.dtype) -> str:
    """Return the NumPy name of a type."""
    return str(dtype).removeprefix("torch.")


def encoded_bytes(value: Any) -> bytes:
    """Return the encoded image in a store's value, in any form that `datasets` writes.

    Raises:
        DamagedTile: If the image is missing or cannot be read.
    """
    try:
        raw = value if value is None or isinstance(value, bytes) else value.as_py()
    except (pa.ArrowException, ValueError, OverflowError) as error:  # ValueError: invalid UTF-8
        raise DamagedTile(f"cannot be read ({error_reason(error)})") from None
    if isinstance(raw, dict):
        encoded, path = raw.get("bytes"), raw.get("path")
        raw = encoded if encoded is not None or not isinstance(path, str) else _read_linked_file(path)
    if raw is None:
        raise DamagedTile("is missing")
    if not isinstance(raw, bytes):
        raise DamagedTile(f"is {type(raw).__name__}, not the bytes of an image")
    return raw


def _read_linked_file(path: str) -> bytes:
    """Read the file that an Image column names in place of bytes."""
    shown = path if path.isprintable() else ascii(path)
    try:
        return read_file(Path(path))
    except FileNotFoundError as error:
        raise DamagedTile(f"cannot be read ({error.strerror}: {shown})") from None
    except DamagedTile as reason:
        raise DamagedTile(f"{reason}: {shown}") from None


def _read_array(value: Any, columns: TileColumns) -> Pixels:
    if not value.is_valid:
        raise DamagedTile("is missing")
    assert columns.array_shape is not None
    try:
        rows = value.value if isinstance(value, pa.ExtensionScalar) else value  # `datasets` unwraps some
        flat = rows.values.flatten(recursive=True)
        if flat.null_count:
            raise DamagedTile(f"has {flat.null_count} missing values")
        if flat.nbytes > MAX_TILE_BYTES:
            raise DamagedTile(f"has {flat.nbytes} bytes; at most {MAX_TILE_BYTES} are read")
        array = np.array(flat.to_numpy(zero_copy_only=False))
        array = array.reshape(-1, *(size or -1 for size in columns.array_shape[1:]))
    except (pa.ArrowException, AttributeError, TypeError, ValueError) as error:
        shape = list(columns.array_shape)
        raise DamagedTile(f"is not an array of {shape}, as its column declares ({error_reason(error)})") from None
    return array.transpose(2, 0, 1) if columns.bands_last else array


def _stack_layers(layers: Sequence[Tensor], nodata: float | None) -> Tensor:
    """Stack layers [1, height, width] to [bands, height, width]; smaller ones are resized to the largest."""
    height, width = (max(layer.shape[axis] for layer in layers) for axis in (1, 2))
    return torch.cat([_resize(layer, height, width, nodata) for layer in layers])


def _resize(layer: Tensor, height: int, width: int, nodata: float | None) -> Tensor:
    """Resize bilinearly; a pixel that no data would enter holds none."""
    if layer.shape[1:] == (height, width):
        return layer
    values = layer[None].float()
    if nodata is not None and layer.dtype not in (torch.uint8, torch.float32):
        values[layer[None] == nodata] = torch.nan
    resized = interpolate(values, (height, width), mode="bilinear")[0]
    return resized if layer.is_floating_point() else resized.nan_to_num(nodata or 0).round().to(layer.dtype)
