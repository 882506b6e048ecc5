"""One number for no data in all tiles of a build: chosen from what the scenes declare, and put into their pixels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from moco_accel.common.pixels import Mask, Pixels
from moco_accel.scenes.layouts import LOWEST_FLOAT, Layout
from moco_accel.scenes.pixel_types import fits_type

_DEFAULTS = {"uint16": 0, "int16": -32768, "float32": LOWEST_FLOAT}


def choose_nodata(layouts: Sequence[Layout], paired_scenes: Sequence[Layout]) -> float | None:
    """Return the number that marks no data in all tiles; None if nothing marks it.

    - 8 bits: the number that all scenes declare, if it is one.
    - 16 bits: the number that most scenes declare, the smallest of equally frequent ones. If none is declared but masks
      or a satellite's zeros mark no data, 0 for uint16 and -32768 for int16.
    - float32: the number that scenes declare if it is one, else the lowest float32: NaN needs a number.
    """
    dtype = layouts[0].dtype
    if dtype == "uint8":
        values = {value for layout in layouts for value in layout.nodata or (None,)}
        return values.pop() if len(values) == 1 else None
    declared = _declared(layouts if dtype != "float32" else (*layouts, *paired_scenes), dtype)
    if dtype == "float32":
        return next(iter(declared)) if len(declared) == 1 else LOWEST_FLOAT
    if declared:
        return min(declared, key=lambda number: (-declared[number], number))
    is_marked = any(any_declared(x) or x.has_mask or x.zero_is_nodata for x in (*layouts, *paired_scenes))
    return _DEFAULTS[dtype] if is_marked else None


def any_declared(layout: Layout) -> bool:
    """Check whether a scene declares a number for no data."""
    return any(number is not None for number in layout.nodata)


def declare_nodata(layouts: Sequence[Layout], nodata: float | None) -> list[Layout]:
    """Return the scenes, those that mark no data in no way as if they declared the number that others declare."""
    if nodata is None or layouts[0].dtype == "uint8" or nodata not in _declared(layouts, layouts[0].dtype):
        return list(layouts)
    return [
        replace(layout, nodata=(nodata,) * len(layout.sources), zero_is_nodata=False) if _is_silent(layout) else layout
        for layout in layouts
    ]


def put_nodata(layout: Layout, pixels: Pixels, valid: Mask | None, nodata: float) -> None:
    """Write `nodata` into all bands of the pixels without data; move valid 16-bit values that equal it by one."""
    if pixels.dtype.kind in "ui" and pixels.dtype != np.uint8:
        step = -1 if nodata == np.iinfo(pixels.dtype).max else 1
        pixels[(pixels == nodata) & (True if valid is None else valid)] = int(nodata) + step
    if valid is not None:
        pixels[:, ~valid] = nodata


def nodata_notes(layouts: Sequence[Layout], declared: Sequence[Layout], nodata: float | None) -> Iterator[str]:
    """Yield notes on scenes whose no data is stored as another number, and on those that declare none."""
    if nodata is None or layouts[0].dtype == "uint8":
        return
    numbers = {_text(number): layout for layout in layouts for number in layout.nodata if number is not None}
    if len(numbers) > 1 and layouts[0].dtype != "float32":
        counts = Counter(text for layout in layouts for text in {_text(x) for x in layout.nodata if x is not None})
        found = ", ".join(
            f"{number} in {count} ({numbers[number].scene.files[0].name})" for number, count in counts.most_common(5)
        )
        yield (
            f"no data is not one number in all scenes: {found}; it is stored as {nodata:g} in all tiles, and pixels "
            "with data of that value are moved by one"
        )
    silent = [old for old, new in zip(layouts, declared, strict=True) if old.nodata != new.nodata]
    if silent:
        example = silent[0].scene.files[0].name
        yield (
            f"{len(silent):,} of {len(layouts):,} scenes declare no number for no data, e.g. {example}; {nodata:g}, "
            "which others declare, counts as no data in them, too"
        )


def _declared(layouts: Sequence[Layout], dtype: str) -> Counter[float]:
    """Return how many scenes declare each number that tiles can hold."""
    numbers = ({_rounded(x, dtype) for x in layout.nodata if x is not None} for layout in layouts)
    return Counter(x for found in numbers for x in found if math.isfinite(x) and fits_type(x, dtype))


def _rounded(number: float, dtype: str) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(number)) if dtype == "float32" else number


def _is_silent(layout: Layout) -> bool:
    return not (any_declared(layout) or layout.has_mask)


def _text(number: float) -> str:
    return f"{number:.10g}"
