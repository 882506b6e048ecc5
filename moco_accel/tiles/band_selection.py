"""From bands as stored to bands as the encoder takes them: by name, in the recipe's order. A count is never trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.images.decoding import JPEG, NPY, PNG, band_descriptions
from moco_accel.recipe.bands import SENTINEL2, canonical_bands, picture_bands, select_bands
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.base import Store
from moco_accel.tiles.columns import TileColumns, dtype_name
from moco_accel.tiles.tile_bytes import first_bytes

_OF_PICTURES = {1: ["grey"], 2: ["grey", "alpha"], 3: ["red", "green", "blue"], 4: ["red", "green", "blue", "alpha"]}
_LEVEL_2A = tuple(band for band in SENTINEL2 if band != "B10")
_TOLD_BY_COUNT = 3  # more bands than these want names


@dataclass(frozen=True)
class BandSelection:
    """Names of the bands yielded, None if unknown; `select` are their places among the stored, None: all as stored.

    `declared` are the names as stored where it is the recipe that says them.
    """

    names: list[str] | None
    select: list[int] | None
    declared: list[str] | None = None


def stored_names(
    store: Store, columns: TileColumns, first: Tensor, index: int, source: str, field: str
) -> list[str] | None:
    """What the shards' facts say, else what the first tile's file says; None where neither does. Raises UserError."""
    facts = store.facts
    if facts is None:
        return _names_in_file(store, columns, first, index)
    if len(facts.bands) != len(first) or facts.dtype != dtype_name(first):
        raise UserError(
            f"{field}={source!r} is said to hold {facts.dtype} bands [{', '.join(facts.bands)}], but its tiles are "
            f"{len(first)} bands of {dtype_name(first)}; build them anew, or take tiles.json away"
        )
    return facts.bands


def choose_bands(stored: list[str] | None, count: int, data: Data, num_bands: int | None, source: str) -> BandSelection:
    """Which of `count` stored bands the recipe wants; it names them where the source does not.

    Raises UserError, naming what is there.
    """
    declared = None
    if data.stored_bands is not None:
        stored = declared = _check_declared(canonical_bands(data.stored_bands), stored, count, source)
    if data.bands is not None:
        wanted = canonical_bands(data.bands)
        if num_bands is not None and len(wanted) != num_bands:
            raise UserError(
                f"data.bands=[{', '.join(wanted)}] are {len(wanted)} and encoder.bands={num_bands}; "
                f"encoder.bands={len(wanted)} works"
            )
        if stored is None:
            _check_all_named(wanted, count, source)
            return BandSelection(wanted, None)
        select = select_bands(wanted, stored, "data.bands", source)
        return BandSelection(wanted, None if select == list(range(count)) else select, declared)
    if num_bands is not None:
        _check_count(stored, count, num_bands, source)
    return BandSelection(stored, None, declared)


def _check_declared(declared: list[str], stored: list[str] | None, count: int, source: str) -> list[str]:
    """`declared`, where it names bands without names, all of them, or says what is stored anyway."""
    if stored is not None and stored != declared:
        raise UserError(
            f"data.stored_bands=[{', '.join(declared)}], but the bands of {source!r} have names: "
            f"[{', '.join(stored)}]; data.stored_bands=null works"
        )
    if len(declared) != count:
        raise UserError(
            f"data.stored_bands=[{', '.join(declared)}] names {len(declared)} bands, but the tiles in {source!r} have "
            f"{count}; name all, in their order: data.stored_bands={example_names(count)}"
        )
    return declared


def _check_all_named(wanted: list[str], count: int, source: str) -> None:
    if len(wanted) != count:
        raise UserError(
            f"data.bands=[{', '.join(wanted)}] chooses among bands of {source!r} whose names are not stored; name all "
            f"{count}, in their order: data.stored_bands={example_names(count)}"
        )


def _check_count(stored: list[str] | None, count: int, num_bands: int, source: str) -> None:
    if wants_names(stored, count):
        raise UserError(
            f"data.bands=null, but the tiles in {source!r} have {count} bands, whose names are not stored; name all, "
            f"in their order, and data.bands chooses among them: data.stored_bands={example_names(count)}"
        )
    if count == num_bands:
        return
    names = f" [{', '.join(stored)}]" if stored else ""
    fewer = ""
    if not stored and num_bands < count:
        fewer = f", or data.bands chooses after all are named: data.stored_bands={example_names(count)}"
    if stored and num_bands < count:
        places = picture_bands(stored, count) if num_bands == 3 else range(num_bands)
        fewer = f", or data.bands=[{', '.join(stored[place] for place in places)}]"
    raise UserError(
        f"encoder.bands={num_bands} but the tiles in {source!r} have {count}{names}; encoder.bands={count} works{fewer}"
    )


def wants_names(stored: list[str] | None, count: int) -> bool:
    """Whether training asks for names: no one knows what more than a few unnamed bands are."""
    return stored is None and count > _TOLD_BY_COUNT


def example_names(count: int) -> str:
    """Names that `count` bands may have, as a recipe's field."""
    known = {len(SENTINEL2): SENTINEL2, len(_LEVEL_2A): _LEVEL_2A}
    names = known.get(count) or tuple(f"B{number}" for number in range(1, count + 1))
    return f"[{', '.join(names)}]" + (" if they are Sentinel-2's" if count in known else "")


def _names_in_file(store: Store, columns: TileColumns, first: Tensor, index: int) -> list[str] | None:
    if columns.array_shape is not None:
        return None
    raw = first_bytes(store.values(columns.names, index)[0], "")
    if raw.startswith((JPEG, PNG)):
        return _OF_PICTURES.get(len(first))
    if raw.startswith(NPY):
        return None
    is_picture = first.dtype == torch.uint8 and len(first) in (1, 3)  # elevation is no grey, reflectance no colour
    return _described(raw) or (_OF_PICTURES[len(first)] if is_picture else None)


def _described(raw: bytes) -> list[str] | None:
    """The bands' descriptions in a raster; None where one has none, or without rasterio."""
    try:
        descriptions = band_descriptions(raw)
    except UserError:  # no rasterio: such a tile can still be plain RGB, which is read without it
        return None
    return canonical_bands([text for text in descriptions if text]) if all(descriptions) else None
