"""Measure per-band statistics over a sample of tiles, in constant memory, for training and `moco-data inspect`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Mask, Pixels, valid_pixels
from moco_accel.images.headers import DamagedTile
from moco_accel.tiles.running_statistics import RunningStatistics
from moco_accel.tiles.tiles import Tiles
from moco_accel.tiles.unmarked_nodata import HUGE, IN_ALL_BANDS, UnmarkedNodata

SAMPLE = 1000
_MAX_REFLECTANCE, _MIN_SCALED = 2, 100  # the highest value of a tile in either unit
_MIN_SHARE_OF_UNIT = 0.05  # of tiles


class MixedUnits:
    """Finds tiles of reflectance from 0 to 1 beside tiles of the same bands in other units, such as 0 to 4,000."""

    def __init__(self) -> None:
        self._tiles = 0
        self._ranges: dict[bool, list[tuple[float, float]]] = {True: [], False: []}  # by whether they are small

    def add(self, tile: Pixels, valid: Mask | None) -> None:
        """Note the lowest and highest value of a float tile [bands, height, width]; of one band, any unit may vary."""
        if tile.dtype.kind != "f" or len(tile) < 2:
            return
        self._tiles += 1
        values = tile if valid is None else tile[:, valid]
        values = values[np.isfinite(values) & (np.abs(values) < HUGE)]
        highest = float(values.max(initial=0))
        if 0 < highest <= _MAX_REFLECTANCE or highest > _MIN_SCALED:
            self._ranges[highest <= _MAX_REFLECTANCE].append((float(values.min()), highest))

    def describe(self, source: str) -> list[str]:
        """Return a line if tiles fall into two groups of units; `source` begins it."""
        small, large = self._ranges[True], self._ranges[False]
        if min(len(small), len(large)) < max(1, _MIN_SHARE_OF_UNIT * self._tiles):
            return []
        (low, high), (others_low, others_high) = ((min(x)[0], max(y for _, y in x)) for x in (small, large))
        return [
            f"{source}: {len(small):,} of {self._tiles:,} sampled tiles hold values from {low:.4g} to {high:.4g}, "
            f"{len(large):,} from {others_low:.4g} to {others_high:.4g}, which looks like two units in one source; "
            "rio convert --scale-ratio 10000 IN OUT multiplies files of reflectance from 0 to 1 by 10,000"
        ]


@dataclass(frozen=True)
class MeasuredStatistics:
    """Statistics of a sample of tiles.

    Attributes:
        running: Statistics of the readable tiles, by band in the order that tiles yield.
        num_sampled: Number of tiles in the sample.
        damaged: Index and reason of the tiles that cannot be read.
        unmarked: Share of pixels by number, of numbers that look like no data and are not declared.
        units: Ranges of values by tile.
    """

    running: RunningStatistics
    num_sampled: int
    damaged: list[tuple[int, str]]
    unmarked: dict[float, float]
    units: MixedUnits

    @property
    def tiles(self) -> int:
        """Number of tiles that were counted."""
        return self.num_sampled - len(self.damaged)


def measure_statistics(
    tiles: Tiles,
    sample: int = SAMPLE,
    on_progress: Callable[[int, int], None] | None = None,
    on_tile: Callable[[Pixels], None] | None = None,
) -> MeasuredStatistics:
    """Count the pixels with data of a sample of tiles, which is the same on every call.

    Args:
        sample: Number of tiles; 0 for all.
        on_progress: Called with (tiles read, tiles to read).
        on_tile: Called with the pixels [bands, height, width] of each readable tile.

    Raises:
        UserError: If no tile of the sample can be read.
    """
    running: RunningStatistics | None = None
    unmarked, units = UnmarkedNodata(), MixedUnits()
    damaged: list[tuple[int, str]] = []
    indices = sample_indices(len(tiles), sample)
    for done, index in enumerate(indices, start=1):
        try:
            tile = tiles[index].numpy()
        except DamagedTile as error:
            damaged.append((index, str(error)))
        else:
            running = running or RunningStatistics(len(tile), tile.dtype)
            valid = valid_pixels(tile, tiles.nodata)
            running.add(tile, valid)
            unmarked.add(tile, valid)
            units.add(tile, valid)
            if on_tile is not None:
                on_tile(tile)
        if on_progress is not None:
            on_progress(done, len(indices))
    if running is None:
        index, reason = damaged[0]
        raise UserError(
            f"data.source={tiles.source!r}: none of {len(damaged):,} sampled tiles can be read "
            f"(tile {index}: {reason}); rebuild them"
        )
    return MeasuredStatistics(running, len(indices), damaged, unmarked.shares(), units)


def describe_unmarked(measured: MeasuredStatistics, source: str, scaling: str | None) -> list[str]:
    """Return a line for each number that looks like no data and is not declared, with what marks it.

    Args:
        source: The source, as it begins a message.
        scaling: `data.scaling` of a recipe; None outside one.
    """
    lines, is_uint8 = [], measured.running.dtype == np.uint8
    for number, share in measured.unmarked.items():
        bands = " in all bands" if len(measured.running.pixels) > 1 and number in IN_ALL_BANDS else ""
        marks_no_8_bits = is_uint8 and scaling in ("uint8", None)
        works = f"data.nodata={number:.17g}" + (" data.scaling=percentiles" if marks_no_8_bits else "")
        if scaling is None:
            works = f"--nodata {number:.17g} here, {works} in a recipe"
        if is_uint8:
            works += f", or moco-data build --nodata {number:g}, which leaves tiles with many such pixels out"
        lines.append(
            f"{source}: {share:.1%} of the pixels are {number:g}{bands}, which nothing declares as no data; if they "
            f"hold none: {works}"
        )
    return lines


def sample_indices(tile_count: int, sample: int) -> list[int]:
    """Draw one index from each of `sample` equal parts; return all indices if `sample` is 0 or too large.

    The indices are the same on every call. They are spread evenly, but not periodic: scenes are stored row by row.
    """
    if sample <= 0 or sample >= tile_count:
        return list(range(tile_count))
    edges = np.arange(sample + 1, dtype=np.int64) * tile_count // sample
    return [int(index) for index in np.random.default_rng(0).integers(edges[:-1], edges[1:])]


def scaled_mean_std(
    running: RunningStatistics, low: Sequence[float], high: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per band of pixels clip((stored - low) / (high - low), 0, 1).

    They are exact for integers; for floats they are those of the sample in `running`. The standard deviation of a
    constant band, or of one without pixels, is 0.
    """
    pairs = [_mean_std(*running.values(band), *edges) for band, edges in enumerate(zip(low, high, strict=True))]
    return [mean for mean, _ in pairs], [std for _, std in pairs]


def _mean_std(values: Pixels, counts: Pixels, low: float, high: float) -> tuple[float, float]:
    if not values.size:
        return 0.0, 0.0
    pixels = np.clip((values - low) / (high - low), 0, 1)
    if pixels[0] == pixels[-1]:
        return float(pixels[0]), 0.0
    mean = float(np.average(pixels, weights=counts))
    return mean, float(np.sqrt(np.average((pixels - mean) ** 2, weights=counts)))


def clipped_share(running: RunningStatistics, low: Sequence[float], high: Sequence[float]) -> list[float]:
    """Return the share of each band's values below `low` or above `high`, which become 0 or 1."""
    shares = []
    for band, (below, above) in enumerate(zip(low, high, strict=True)):
        values, counts = running.values(band)
        outside = counts[(values < below) | (values > above)].sum()
        shares.append(float(outside / counts.sum()) if values.size else 0.0)
    return shares
