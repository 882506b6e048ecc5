"""Tiles as the shards hold them, and their statistics."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from moco_accel.imagery.rasters import Mask, Pixels
from moco_accel.tile_facts import BandCounter

Tile = tuple[Pixels, Mask | None, bytes | None]  # pixels, where they hold data, the file's bytes if they can serve


def encode(tile: Tile) -> Any:
    """One or three bands of 8 bits as an encoded picture for `datasets.Image`; anything else as .npy bytes."""
    pixels, _, encoded = tile
    buffer = io.BytesIO()
    if not is_picture(len(pixels), str(pixels.dtype)):
        np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
        return buffer.getvalue()
    if encoded is None:
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)).squeeze(2 if len(pixels) == 1 else ())).save(
            buffer, "png"
        )
    return {"bytes": encoded or buffer.getvalue(), "path": None}


def is_picture(bands: int, dtype: str) -> bool:
    return dtype == "uint8" and bands in (1, 3)


def count_tiles(counter: BandCounter | None, tiles: list[Tile]) -> None:
    """Many small tiles cost as much as one large one when they are counted together."""
    if not tiles or counter is None:
        return
    flat = np.concatenate([pixels.reshape(len(pixels), 1, -1) for pixels, _, _ in tiles], axis=2)
    masks = [np.ones(pixels[0].size, np.bool_) if valid is None else valid.ravel() for pixels, valid, _ in tiles]
    counter.add(flat, None if all(valid is None for _, valid, _ in tiles) else np.concatenate(masks)[None])
