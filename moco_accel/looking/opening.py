"""Open a source to look at it: nothing is known of it yet but where it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from moco_accel.reading.tiles import Tiles, open_tiles
from moco_accel.recipe import Data, Recipe
from moco_accel.recipe_text import RecipeError, explain

_BUFFER_MIB = 2048  # holds any row group that is likely to be met


def open_unknown(
    source: str, bands: Sequence[str] | None = None, image_column: str | None = None, split: str = "train"
) -> Tiles:
    """The tiles of `source` as they are stored, or these of their bands. Raises RecipeError.

    Shards are read in place: looking at a thousand tiles is no reason to prepare a cache of all. A hub id is fetched.
    """
    try:
        data = Data(
            source=source,
            bands=list(bands) if bands else None,
            image_column=image_column,
            split=split,
            streaming=is_read_in_place(source),
            shuffle_buffer_mib=_BUFFER_MIB,
        )
    except ValidationError as error:
        raise RecipeError(explain(error, Recipe)) from None
    return open_tiles(source, data, None, field="SOURCE")


def is_read_in_place(source: str) -> bool:
    """Whether there is no need to fetch it: an address, or what is on this machine."""
    return "://" in source or "*" in source or Path(source).exists()
