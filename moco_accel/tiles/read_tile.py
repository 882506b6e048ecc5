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
from moco_accel.images.decoding import decode_raster
from moco_accel.images.headers import MAX_TILE_BYTES, DamagedTile, read_file
from moco_accel.sources.base import Store

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


def read_tile(store: Store, columns: TileColumns, index: int) -> Tensor:
    """Return a tile [bands, height, width] of the stored type.

    Raises:
        DamagedTile: If it is missing or cannot be decoded.
    """
    values = store.values(columns.names, index)
    if columns.array_shape is not None:
        return _read_array(values[0], columns)
    if columns.bands is None:
        return decode_raster(encoded_bytes(values[0]), columns.stored_bands)
    layers = []
    for value, name in zip(values, columns.names, strict=True):
        try:
            raw = encoded_bytes(value)
        except DamagedTile as reason:
            raise DamagedTile(f"{name} {reason}") from None
        layers.append(decode_raster(raw, 1))
    return _stack_layers(layers, columns.names)


def check_tile(tile: Tensor, bands: int, dtype: torch.dtype) -> None:
    """Check that a tile [bands, height, width] matches the others of its source.

    Raises:
        DamagedTile: If type, number of bands or size are wrong, or if values are NaN or infinite.
    """
    if tile.dtype != dtype:
        raise DamagedTile(f"is {dtype_name(tile.dtype)}, not {dtype_name(dtype)}")
    if tile.shape[0] != bands:
        raise DamagedTile(f"has {tile.shape[0]} bands, not {bands}")
    if min(tile.shape[1:]) < _MIN_SIDE:
        raise DamagedTile(f"has the wrong size ({tile.shape[1]} x {tile.shape[2]} pixels; at least {_MIN_SIDE} a side)")
    if tile.is_floating_point() and not torch.isfinite(tile).all():
        raise DamagedTile(f"holds {int((~torch.isfinite(tile)).sum())} values that are NaN or infinite")


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


def _read_array(value: Any, columns: TileColumns) -> Tensor:
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
        array = torch.from_numpy(np.array(flat.to_numpy(zero_copy_only=False)))
        array = array.reshape(-1, *(size or -1 for size in columns.array_shape[1:]))
    except (pa.ArrowException, AttributeError, RuntimeError, TypeError, ValueError) as error:
        shape = list(columns.array_shape)
        raise DamagedTile(f"is not an array of {shape}, as its column declares ({error_reason(error)})") from None
    return array.permute(2, 0, 1) if columns.bands_last else array


def _stack_layers(layers: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """Stack layers [1, height, width] to [bands, height, width]; smaller ones are resized to the largest."""
    for layer, name in zip(layers, names, strict=True):
        if layer.shape[0] != 1:
            raise DamagedTile(f"{name} has {layer.shape[0]} bands, not 1")
        if layer.dtype != layers[0].dtype:
            raise DamagedTile(f"{name} is {dtype_name(layer.dtype)}, and {names[0]} {dtype_name(layers[0].dtype)}")
    height, width = (max(layer.shape[axis] for layer in layers) for axis in (1, 2))
    return torch.cat([_resize(layer, height, width) for layer in layers])


def _resize(layer: Tensor, height: int, width: int) -> Tensor:
    if layer.shape[1:] == (height, width):
        return layer
    resized = interpolate(layer[None].float(), (height, width), mode="bilinear")[0]
    return (resized if layer.is_floating_point() else resized.round()).to(layer.dtype)
