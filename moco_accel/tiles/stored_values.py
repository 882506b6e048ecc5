"""Turn decoded images into tiles of one type in which no data is marked in one way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moco_accel.common.pixels import Mask, Pixels, cast_with_loss, holds
from moco_accel.images.decoded import DecodedImage
from moco_accel.images.headers import STORED_TYPES, DamagedTile

LARGEST_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ValueRules:
    """How the values of all tiles of a source are read. They are decided once, from a sample.

    Float tiles have NaN where there is no data. Integer tiles have `nodata` there, whatever number their own file
    declares; a valid pixel of that number moves by one step. In tiles of 8 bits numbers mark nothing, and pixels that
    a mask or alpha hides are 0.

    Attributes:
        dtype: Stored type of the tiles.
        nodata: Number that marks no data in integer tiles, and that files are read with which declare none.
        is_added: Whether the recipe's `nodata` is none of the files' own numbers, so that both mark no data.
        keep_alpha: Whether an alpha band is a band like the others.
    """

    dtype: str
    nodata: float | None = None
    is_added: bool = False
    keep_alpha: bool = True

    def read(self, image: DecodedImage) -> Pixels:
        """Return pixels [bands, height, width] of `dtype`, which may be written to.

        Raises:
            DamagedTile: If the image has another type that cannot be cast without loss.
        """
        pixels = image.pixels
        if self.dtype == "uint8":
            cast = cast_values(pixels, self.dtype)
            if image.valid is not None:
                cast[:, ~image.valid] = 0
            return cast
        own = image.nodata if holds(pixels.dtype.name, image.nodata) else None
        numbers: set[float | None] = {own} if own is not None else {self.nodata} if image.valid is None else set()
        if self.is_added:
            numbers = numbers | {self.nodata}
        if self.dtype != "float32" and image.valid is None and numbers == {self.nodata}:
            return cast_values(pixels, self.dtype)
        empty = find_numbers(pixels, numbers)
        if image.valid is not None:
            empty = ~image.valid[None] if empty is None else empty | ~image.valid
        if self.dtype == "float32":
            return _read_floats(pixels, empty)
        return self._mark_integers(pixels, empty, moves=self.nodata not in numbers)

    def _mark_integers(self, pixels: Pixels, empty: Mask | None, moves: bool) -> Pixels:
        """Mark `empty` by `nodata`; if `moves`, valid pixels of that number move by one step."""
        if empty is not None and empty.any():
            empty = np.broadcast_to(empty, pixels.shape)
            cast = cast_values(np.where(empty, pixels.dtype.type(0), pixels), self.dtype)
        else:
            empty, cast = None, cast_values(pixels, self.dtype)
        if not holds(self.dtype, self.nodata):
            if empty is not None:
                raise DamagedTile("marks no data as no sampled tile does; data.nodata names the number for all tiles")
            return cast
        assert self.nodata is not None
        number = int(self.nodata)
        if moves:
            cast[cast == number] = number - 1 if number == np.iinfo(self.dtype).max else number + 1
        if empty is not None:
            cast[empty] = number
        return cast


def _read_floats(pixels: Pixels, empty: Mask | None) -> Pixels:
    if pixels.dtype.kind == "f":
        unknown = ~np.isfinite(pixels)
        empty = unknown if empty is None else empty | unknown
    if empty is None or not empty.any():
        return cast_values(pixels, "float32")
    empty = np.broadcast_to(empty, pixels.shape)
    values = cast_values(np.where(empty, 0, pixels), "float32")
    values[empty] = np.nan
    return values


def find_numbers(pixels: Pixels, numbers: set[float | None]) -> Mask | None:
    """Return a mask of the pixels that equal one of `numbers`; None if none of them fits the type."""
    fitting = sorted(number for number in numbers if number is not None and holds(pixels.dtype.name, number))
    found = [np.asarray(pixels == pixels.dtype.type(number)) for number in fitting]
    return np.logical_or.reduce(found) if found else None


def cast_values(pixels: Pixels, dtype: str) -> Pixels:
    """Return a copy of `pixels` as `dtype`; one bit becomes 0 and 255.

    Raises:
        DamagedTile: If the type is a stored one and another than `dtype`, or if values do not fit.
    """
    name = pixels.dtype.name
    if name == dtype:
        native = pixels.dtype.newbyteorder("=")
        return pixels.astype(native, copy=not pixels.flags.writeable or native != pixels.dtype)
    is_float = pixels.dtype.kind == "f"
    if name in STORED_TYPES or (name == "bool") != (dtype == "uint8") or (is_float and dtype != "float32"):
        raise DamagedTile(f"is {name}, not {dtype}")
    if name == "bool":
        return np.where(pixels, np.uint8(255), np.uint8(0))
    cast, lost = cast_with_loss(pixels, dtype)
    if lost.any():
        value = pixels[lost][0]
        raise DamagedTile(
            f"is {name} with values that {dtype} cannot hold, such as {value}; if it marks no data, data.nodata={value}"
        )
    return cast
