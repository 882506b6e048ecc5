"""Count pixels that look as if they held no data although nothing marks them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from moco_accel.common.pixels import Mask, Pixels

IN_ALL_BANDS = (0.0, 65535.0)  # in one band alone these are common
HUGE = 1e18  # no unit has such values: 9.96921e36 is NetCDF's, 1e20 that of climate models
_LOWEST_OF_WHOLE = (-9999.0, -32767.0, -32768.0)
_NINES = [-(10.0**digits - rest) for digits in range(4, 10) for rest in (1, 0.1, 0.01, 0.001)]  # -9999, -9999.9
_FLOAT_FILLS = np.unique(np.array([*_LOWEST_OF_WHOLE, *_NINES, -(2.0**31), 1 - 2.0**31], np.float32))
_MAX_NUMBERS = 16  # of one tile that are counted
_LEAST_SHARE, _LEAST_SHARE_OF_BLACK = 0.001, 0.02  # black is common in pictures of 8 bits


class UnmarkedNodata:
    """Shares of pixels that equal a usual number for no data, among pixels that hold data as far as is known.

    These are -9999 and the like, and any huge number, in any band; and 0 (of uint16 also 65,535) in all bands.
    """

    def __init__(self) -> None:
        self._counts: Counter[float] = Counter()
        self._pixels, self._dtype = 0, ""

    def add(self, tile: Pixels, valid: Mask | None) -> None:
        """Count a tile [bands, height, width]; `valid` is False where it holds no data, None if nowhere."""
        self._pixels, self._dtype = self._pixels + tile[0].size, tile.dtype.name
        for number in usual_fills(tile):
            self._count(number, (tile == tile.dtype.type(number)).any(axis=0), valid)
        if tile.dtype.kind != "f":
            self._count(0.0, np.asarray(~tile.any(axis=0)), valid)
        if self._dtype == "uint16":
            self._count(65535.0, (tile == 65535).all(axis=0), valid)

    def _count(self, number: float, found: Mask, valid: Mask | None) -> None:
        self._counts[number] += int(np.count_nonzero(found if valid is None else found & valid))

    def shares(self) -> dict[float, float]:
        """Return the share of each number that is frequent enough to be printed, most frequent first."""
        least = _LEAST_SHARE_OF_BLACK if self._dtype == "uint8" else _LEAST_SHARE
        shares = {number: count / max(self._pixels, 1) for number, count in self._counts.most_common()}
        return {number: share for number, share in shares.items() if share > least}


def usual_fills(pixels: Pixels) -> list[float]:
    """Return the numbers among `pixels` that mark no data by custom in one band alone; of many, the most frequent."""
    if pixels.dtype == np.int16:
        return [float(number) for number in _LOWEST_OF_WHOLE if (pixels == number).any()]
    if pixels.dtype.kind != "f":
        return []
    is_odd = (pixels <= -9999) | (np.abs(pixels) >= HUGE)
    numbers, counts = np.unique(pixels[is_odd & np.isfinite(pixels)], return_counts=True)
    is_fill = (np.abs(numbers) >= HUGE) | np.isin(numbers, _FLOAT_FILLS)
    order = np.argsort(-counts[is_fill], kind="stable")[:_MAX_NUMBERS]
    return [float(number) for number in numbers[is_fill][order]]
