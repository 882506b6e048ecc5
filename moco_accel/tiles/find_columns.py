"""Find the columns of a source that make a tile: one with all its bands, or one per band."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import datasets

from moco_accel.common.console import print_note
from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Pixels
from moco_accel.images.band_files import band_of, is_band_name
from moco_accel.images.decoding import decode_image
from moco_accel.images.headers import READABLE_TYPES, DamagedTile
from moco_accel.images.label_maps import find_label_maps, has_mask_name
from moco_accel.recipe.bands import select_bands
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.base import Store
from moco_accel.tiles.read_tile import TileColumns, encoded_bytes

_PAIR_SUFFIX = "_pair"  # moco-data build --pair-with writes the columns image and image_pair
_BINARY = ("binary", "large_binary")
_MAX_TRIED_COLUMNS = 100
_MAX_TRIED_ROWS = 20  # to find a value
_LABEL_ROWS = 4  # to see whether values are few
_SUPPORTED = "Image, bytes or Array3D of numbers"


def find_columns(store: Store, data: Data, num_bands: int | None) -> TileColumns:
    """Return the column of `data.image_column`, else the columns of `data.bands`, else the only image column.

    A column of paired seasons is left out: `data.pair_column`, or `image_pair` beside `image`.

    Raises:
        UserError: If there is no such column, or more than one. The message names the candidates.
    """
    if data.image_column is not None:
        return _column_of(store, data.image_column, "data.image_column", data, num_bands)
    others = [name for name in _image_columns(store) if name != data.pair_column]
    pairs = {name + _PAIR_SUFFIX for name in others}
    candidates = _without_masks(store, [name for name in others if name not in pairs])
    if chosen := _find_band_columns(store, candidates, data):
        return TileColumns(tuple(chosen.values()), tuple(chosen))
    if 1 < len(candidates) <= _MAX_TRIED_COLUMNS:
        candidates = [name for name in candidates if _can_decode(store, name)]
    if len(candidates) != 1:
        found = "several image columns" if candidates else "no image column"
        raise UserError(
            f"data.image_column=null, and {store.source.path!r} has {found} "
            f"({', '.join(candidates or store.features)}); "
            + (_offer(store, candidates) if candidates else f"columns of {_SUPPORTED} work")
        )
    return _column_of(store, candidates[0], "data.image_column", data, num_bands)


def _without_masks(store: Store, names: Sequence[str]) -> list[str]:
    """Return the columns that are not named as masks and hold no label maps; all if none else is left."""
    loose = [name for name in names if not is_band_name(name)]
    masks = {name for name in loose if has_mask_name(f"{name.removesuffix('.png').removesuffix('.tif')}.png")}
    if 1 < len(loose) - len(masks) <= _MAX_TRIED_COLUMNS:
        masks |= _label_map_columns(store, [name for name in loose if name not in masks])
    if not masks or len(masks) == len(names):
        return list(names)
    left = ", ".join(sorted(masks))
    print_note(
        f"{store.source}: columns of masks or label maps are left out: {left}; data.image_column={min(masks)} reads one"
    )
    return [name for name in names if name not in masks]


def _label_map_columns(store: Store, names: Sequence[str]) -> set[str]:
    """Return the columns whose first values are label maps, if others' are pictures."""
    found: dict[str, tuple[str, Pixels]] = {}
    for name in names:
        for index in range(min(len(store), _LABEL_ROWS)):
            with suppress(DamagedTile):
                value = store.values([name], index)[0]
                found[f"{name}/{index}"] = name, decode_image(encoded_bytes(value), keep_alpha=False).pixels
    kinds = {key: (len(pixels), pixels.dtype) for key, (_, pixels) in found.items()}
    return {found[key][0] for key in find_label_maps(list(found), kinds.__getitem__, lambda key: found[key][1])}


def _offer(store: Store, candidates: Sequence[str]) -> str:
    """Return which column works: one that all tiles have."""
    missing = {name: store.missing(name) for name in candidates}
    if whole := [name for name, count in missing.items() if not count]:
        return f"data.image_column={whole[0]} works"
    counts = ", ".join(f"{name} {count:,}" for name, count in missing.items())
    return f"none works, for each is missing in some of {len(store):,} tiles ({counts}); one name for all works"


def find_pair_column(store: Store, data: Data, num_bands: int | None) -> TileColumns | None:
    """Return the column of `data.pair_column`; None if it is null.

    Raises:
        UserError: If it is not a second image column. The message names the image columns.
    """
    name, columns = data.pair_column, _image_columns(store)
    if name is None:
        return None
    if name in columns and name != data.image_column and len(columns) > 1:
        return _column_of(store, name, "data.pair_column", data, num_bands)
    works = [column for column in columns if column != (data.image_column or columns[0])]
    works.sort(key=lambda column: not column.endswith(_PAIR_SUFFIX))
    raise UserError(
        f"data.pair_column={name!r} is not a second image column of {store.source.path!r} ({', '.join(columns)}); "
        + (f"data.pair_column={works[0]} works" if works else "data.pair_column=null works: both views of one tile")
    )


def suggest_pair_column(store: Store, columns: TileColumns) -> str | None:
    """Return the column whose name marks it as the paired season of `columns`; None if there is none."""
    name = columns.names[0] + _PAIR_SUFFIX
    return name if columns.bands is None and name in _image_columns(store) else None


def _column_of(store: Store, name: str, field: str, data: Data, num_bands: int | None) -> TileColumns:
    """Describe the column `name`, which holds all bands."""
    features, works, source = store.features, _image_columns(store), store.source.path
    hint = f"{field}={works[0]} works" if works else f"columns of {_SUPPORTED} work"
    if name not in features:
        raise UserError(f"{field}={name!r} is not a column of {source!r} ({', '.join(features)}); {hint}")
    if name not in works:
        raise UserError(f"{field}={name!r} of {source!r} is {features[name]}, not {_SUPPORTED}; {hint}")
    names = store.metadata.bands if store.metadata else data.stored_bands or data.bands
    stored = len(names) if names else num_bands
    if not isinstance(features[name], datasets.Array3D):
        return TileColumns((name,), stored_bands=stored)
    shape = features[name].shape
    return TileColumns((name,), None, shape, _has_bands_last(name, shape, stored, source))


def _image_columns(store: Store) -> list[str]:
    return [name for name, feature in store.features.items() if _is_image(feature)]


def _is_image(feature: Any) -> bool:
    if isinstance(feature, datasets.Array3D):
        return feature.dtype in READABLE_TYPES
    if isinstance(feature, dict):  # an Image column written without the schema of `datasets`
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or (isinstance(feature, datasets.Value) and feature.dtype in _BINARY)


def _find_band_columns(store: Store, candidates: Sequence[str], data: Data) -> dict[str, str]:
    """Return the column of each wanted band, in that order; nothing if columns are not named after bands."""
    source = store.source.path
    encoded = [name for name in candidates if not isinstance(store.features[name], datasets.Array3D)]
    by_band = {band_of(name): name for name in encoded}
    numbered = {band: name for band, name in by_band.items() if is_band_name(band)}
    if data.bands is not None:
        wanted = [band_of(band) for band in data.bands]
        if not set(wanted) <= set(by_band) and len(numbered) > 1:
            select_bands(data.bands, list(numbered), "data.bands", source)  # raises, and names both lists
        return {band: by_band[band] for band in wanted} if set(wanted) <= set(by_band) else {}
    if len(numbered) > 1:
        others = [name for name in candidates if name not in numbered.values()]
        raise UserError(
            f"data.bands=null, and {source!r} has a column for each band; data.bands=[{', '.join(numbered)}] or some "
            f"of these work" + (f", or data.image_column={others[0]}" if others else "")
        )
    return {}


def _can_decode(store: Store, name: str) -> bool:
    """Try to decode the first value of a column: bytes may hold anything."""
    if not isinstance(store.features[name], datasets.Value):
        return True
    for index in range(min(len(store), _MAX_TRIED_ROWS)):
        value = store.values([name], index)[0]
        if value is None or (not isinstance(value, bytes) and not value.is_valid):
            continue
        try:
            decode_image(encoded_bytes(value))
        except DamagedTile:
            return False
        return True
    return False


def _has_bands_last(name: str, shape: tuple[int | None, ...], stored: int | None, source: str) -> bool:
    first, last = shape[0], shape[2]
    if first == last:
        raise UserError(
            f"data.image_column={name!r} of {source!r} has the shape {list(shape)}: its bands may be the first or the "
            f"last axis; shapes with different first and last axes work, e.g. [13, 64, 64] or [64, 64, 13]"
        )
    if stored in (first, last):
        return stored == last
    if shape[1] in (first, last):  # a square tile
        return shape[1] == first
    return first is None or (last is not None and last < first)
