"""Which columns of a source make a tile, one with all its bands or one per band, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from moco_accel.common.errors import UserError
from moco_accel.images.decoding import STORED_TYPES, DamagedTile, decode_raster
from moco_accel.images.headers import MAX_TILE_BYTES
from moco_accel.recipe.bands import canonical_band, select_bands
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.base import Store
from moco_accel.tiles.tile_bytes import first_bytes

_NUMBERED = re.compile(r"B\d+A?")
PAIR = "_pair"  # moco-data build --pair-with writes image and image_pair
_BINARY = ("binary", "large_binary")
_MOST_TRIED = 100  # columns
_ROWS_LOOKED_AT = 20  # for one that has a value
_KINDS = f"Image, bytes or Array3D of {', '.join(STORED_TYPES)}"


@dataclass(frozen=True)
class TileColumns:
    """`names`: one column, or one per entry of `bands`. `array_shape` is that of an Array3D.

    `stored_bands` is how many are in the column, as far as facts or recipe say: an .npy does not say it.
    """

    names: tuple[str, ...]
    bands: tuple[str, ...] | None = None
    array_shape: tuple[int | None, ...] | None = None
    bands_last: bool = False
    stored_bands: int | None = None


def find_columns(store: Store, data: Data, num_bands: int | None, source: str) -> TileColumns:
    """What `data.image_column` names; else columns named after `data.bands`; else the only one that holds imagery.

    The column of pairs is none of them: `data.pair_column`, or `image_pair` beside `image`. Raises UserError, naming
    the candidates, when there is none or more than one.
    """
    if data.image_column is not None:
        return column_of(store, data.image_column, "data.image_column", data, num_bands, source)
    others = [name for name in _of_imagery(store) if name != data.pair_column]
    candidates = [name for name in others if not (name.endswith(PAIR) and name.removesuffix(PAIR) in others)]
    encoded = [name for name in candidates if not isinstance(store.features[name], datasets.Array3D)]
    if chosen := _band_columns(encoded, candidates, data, source):
        return TileColumns(tuple(chosen.values()), tuple(chosen))
    if 1 < len(candidates) <= _MOST_TRIED:
        candidates = [name for name in candidates if _decodes(store, name)]
    if len(candidates) != 1:
        raise UserError(
            f"data.image_column=null, and {source!r} has {'several columns' if candidates else 'no column'} of imagery "
            f"({', '.join(candidates or store.features)}); "
            + (f"data.image_column={candidates[0]} works" if candidates else f"columns of {_KINDS} are read")
        )
    return column_of(store, candidates[0], "data.image_column", data, num_bands, source)


def pair_column_of(store: Store, data: Data, num_bands: int | None, source: str) -> TileColumns | None:
    """What `data.pair_column` names. Raises UserError, naming the candidates, when that is no second tile."""
    name, imagery = data.pair_column, _of_imagery(store)
    if name is None:
        return None
    if name in imagery and name != data.image_column and len(imagery) > 1:
        return column_of(store, name, "data.pair_column", data, num_bands, source)
    works = [column for column in imagery if column != (data.image_column or imagery[0])]
    works.sort(key=lambda column: not column.endswith(PAIR))
    raise UserError(
        f"data.pair_column={name!r} is no second column of imagery of {source!r} ({', '.join(imagery)}); "
        + (f"data.pair_column={works[0]} works" if works else "data.pair_column=null works: both views of one tile")
    )


def partner_of(store: Store, columns: TileColumns) -> str | None:
    """The column that holds the same places in another season, told by its name."""
    name = columns.names[0] + PAIR
    return name if columns.bands is None and name in _of_imagery(store) else None


def column_of(store: Store, name: str, field: str, data: Data, num_bands: int | None, source: str) -> TileColumns:
    """The column `name`, all bands in it. Raises UserError when it is absent or holds no imagery."""
    features: Mapping[str, Any] = store.features
    works = _of_imagery(store)
    hint = f"{field}={works[0]} works" if works else f"columns of {_KINDS} are read"
    if name not in features:
        raise UserError(f"{field}={name!r} is not a column of {source!r} ({', '.join(features)}); {hint}")
    if name not in works:
        raise UserError(f"{field}={name!r} of {source!r} is {features[name]}, not {_KINDS}; {hint}")
    names = store.facts.bands if store.facts else data.stored_bands or data.bands
    stored = len(names) if names else num_bands
    if not isinstance(features[name], datasets.Array3D):
        return TileColumns((name,), stored_bands=stored)
    shape = features[name].shape
    return TileColumns((name,), None, shape, _bands_last(name, shape, stored, source))


def read_columns(store: Store, columns: TileColumns, index: int) -> Tensor:
    """The tile as it is stored, [bands, height, width]. Raises DamagedTile."""
    values = store.values(columns.names, index)
    if columns.array_shape is not None:
        return _array(values[0], columns)
    if columns.bands is None:
        return decode_raster(first_bytes(values[0], ""), columns.stored_bands)
    layers = [
        decode_raster(first_bytes(value, f"{name} "), 1) for value, name in zip(values, columns.names, strict=True)
    ]
    return _stack(layers, columns.names)


def _of_imagery(store: Store) -> list[str]:
    return [name for name, kind in store.features.items() if _is_imagery(kind)]


def _is_imagery(feature: Any) -> bool:
    if isinstance(feature, datasets.Array3D):
        return feature.dtype in STORED_TYPES
    if isinstance(feature, dict):  # an Image column written without the schema of `datasets`
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or (isinstance(feature, datasets.Value) and feature.dtype in _BINARY)


def _band_columns(encoded: Sequence[str], candidates: Sequence[str], data: Data, source: str) -> dict[str, str]:
    """Column by band, in the order wanted; none where columns don't bear bands' names."""
    by_band = {canonical_band(name): name for name in encoded}
    numbered = {band: name for band, name in by_band.items() if _NUMBERED.fullmatch(band)}
    if data.bands is not None:
        wanted = [canonical_band(band) for band in data.bands]
        if not set(wanted) <= set(by_band) and len(numbered) > 1:
            select_bands(data.bands, list(numbered), "data.bands", source)  # raises: it names both lists
        return {band: by_band[band] for band in wanted} if set(wanted) <= set(by_band) else {}
    if len(numbered) > 1:
        others = [name for name in candidates if name not in numbered.values()]
        raise UserError(
            f"data.bands=null, and {source!r} has a column for each band; data.bands=[{', '.join(numbered)}] or some "
            f"of these work" + (f", or data.image_column={others[0]}" if others else "")
        )
    return {}


def _decodes(store: Store, name: str) -> bool:
    """Whether the first value of a column is imagery: bytes may be anything."""
    if not isinstance(store.features[name], datasets.Value):
        return True
    for index in range(min(len(store), _ROWS_LOOKED_AT)):
        value = store.values([name], index)[0]
        if value is None or (not isinstance(value, bytes) and not value.is_valid):
            continue
        try:
            decode_raster(first_bytes(value, ""))
        except DamagedTile:
            return False
        return True
    return False


def _bands_last(name: str, shape: tuple[int | None, ...], stored: int | None, source: str) -> bool:
    first, last = shape[0], shape[2]
    if first == last:
        raise UserError(
            f"data.image_column={name!r} of {source!r} has the shape {list(shape)}: are its bands the first or the "
            f"last axis? Shapes that tell work, e.g. [13, 64, 64] or [64, 64, 13]"
        )
    if stored in (first, last):
        return stored == last
    if shape[1] in (first, last):  # a square tile
        return shape[1] == first
    return first is None or (last is not None and last < first)


def _array(value: Any, columns: TileColumns) -> Tensor:
    if not value.is_valid:
        raise DamagedTile("is missing")
    assert columns.array_shape is not None
    try:
        return _reshaped(value, columns, columns.array_shape)
    except (pa.ArrowException, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DamagedTile(f"is no array of {list(columns.array_shape)} as its column says ({reason})") from None


def _reshaped(value: Any, columns: TileColumns, shape: tuple[int | None, ...]) -> Tensor:
    rows = value.value if isinstance(value, pa.ExtensionScalar) else value  # `datasets` unwraps some
    flat = rows.values.flatten(recursive=True)
    if flat.null_count:
        raise DamagedTile(f"has {flat.null_count} values that are missing")
    if flat.nbytes > MAX_TILE_BYTES:
        raise DamagedTile(f"has {flat.nbytes} bytes; at most {MAX_TILE_BYTES} are read")
    array = torch.from_numpy(np.array(flat.to_numpy(zero_copy_only=False)))
    array = array.reshape(-1, *(size or -1 for size in shape[1:]))
    return array.permute(2, 0, 1) if columns.bands_last else array


def _stack(layers: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """Layers [1, h, w] of one type → [bands, H, W], H and W the largest among them; the others are resized to it."""
    for layer, name in zip(layers, names, strict=True):
        if layer.shape[0] != 1:
            raise DamagedTile(f"{name} has {layer.shape[0]} bands, not 1")
        if layer.dtype != layers[0].dtype:
            raise DamagedTile(f"{name} is {dtype_name(layer)}, and {names[0]} {dtype_name(layers[0])}")
    height, width = (max(layer.shape[axis] for layer in layers) for axis in (1, 2))
    return torch.cat([_resized(layer, height, width) for layer in layers])


def _resized(layer: Tensor, height: int, width: int) -> Tensor:
    if layer.shape[1:] == (height, width):
        return layer
    resized = interpolate(layer[None].float(), (height, width), mode="bilinear")[0]
    return (resized if layer.is_floating_point() else resized.round()).to(layer.dtype)


def dtype_name(tile: Tensor) -> str:
    return str(tile.dtype).removeprefix("torch.")
