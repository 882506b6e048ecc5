"""Per-band statistics of tiles, measured over a sample of them in constant memory; what a run and `inspect` look up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Pixels, valid_pixels
from moco_accel.images.decoding import DamagedTile
from moco_accel.sources.tile_facts import BandStatistics
from moco_accel.tiles.band_counter import BandCounter

if TYPE_CHECKING:
    from moco_accel.tiles.tiles import Tiles

SAMPLE = 1000


@dataclass(frozen=True)
class Measured:
    """What was seen of a sample: of `looked_at` tiles, those in `damaged` (index, reason) could not be read."""

    counter: BandCounter
    looked_at: int
    damaged: list[tuple[int, str]]

    @property
    def tiles(self) -> int:
        """How many were counted."""
        return self.looked_at - len(self.damaged)

    @property
    def statistics(self) -> BandStatistics:
        """In the order in which the tiles yield their bands."""
        return self.counter.statistics()


def measure_statistics(
    tiles: Tiles, sample: int = SAMPLE, on_progress: Callable[[int, int], None] | None = None
) -> Measured:
    """Count the pixels of `sample` tiles spread evenly over all of them (0: every tile): the same ones on every call.

    Pixels without data (`valid_pixels`) are not counted. `on_progress` gets (tiles read, tiles to read). Raises
    UserError when not one of the tiles can be read.
    """
    counter: BandCounter | None = None
    damaged: list[tuple[int, str]] = []
    for _, tile in read_sample(tiles, sample, damaged, on_progress):
        counter = counter or BandCounter(len(tile), tile.dtype)
        counter.add(tile, valid_pixels(tile, tiles.nodata))
    looked_at = len(sample_indices(len(tiles), sample))
    return Measured(some_counted(counter, tiles, damaged), looked_at, damaged)


def read_sample(
    tiles: Tiles,
    sample: int,
    damaged: list[tuple[int, str]],
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Pixels]]:
    """(index, [bands, height, width]) of the sample's tiles one by one; those that cannot be read go to `damaged`."""
    indices = sample_indices(len(tiles), sample)
    for done, index in enumerate(indices, start=1):
        try:
            yield index, tiles[index].numpy()
        except DamagedTile as reason:
            damaged.append((index, str(reason)))
        if on_progress is not None:
            on_progress(done, len(indices))


def sample_indices(tile_count: int, sample: int) -> list[int]:
    """One index at random from each of `sample` equal parts: spread evenly, yet in step with no period of the order.

    The same on every call. 0, or no fewer than there are: all.
    """
    if sample <= 0 or sample >= tile_count:
        return list(range(tile_count))
    edges = np.arange(sample + 1, dtype=np.int64) * tile_count // sample
    return [int(index) for index in np.random.default_rng(0).integers(edges[:-1], edges[1:])]


def some_counted(counter: BandCounter | None, tiles: Tiles, damaged: Sequence[tuple[int, str]]) -> BandCounter:
    """`counter`, or UserError when there was not one good tile to make it for."""
    if counter is None:
        index, reason = damaged[0]
        raise UserError(
            f"data.source={tiles.source!r}: none of the {len(damaged):,} tiles looked at can be read "
            f"(tile {index}: {reason}); build them anew"
        )
    return counter


def scaled_mean_std(
    counter: BandCounter, low: Sequence[float], high: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per band of pixels: clip((stored - low) / (high - low), 0, 1).

    Exact for integers; of floats, those of the counter's sample. A band that is the same everywhere, or without
    pixels, has a standard deviation of 0.
    """
    pairs = [_mean_std(*counter.values(band), *edges) for band, edges in enumerate(zip(low, high, strict=True))]
    return [mean for mean, _ in pairs], [std for _, std in pairs]


def _mean_std(values: Pixels, times: Pixels, low: float, high: float) -> tuple[float, float]:
    if not values.size:
        return 0.0, 0.0
    pixels = np.clip((values - low) / (high - low), 0, 1)
    if pixels[0] == pixels[-1]:
        return float(pixels[0]), 0.0
    mean = float(np.average(pixels, weights=times))
    return mean, float(np.sqrt(np.average((pixels - mean) ** 2, weights=times)))


def share_cut_off(counter: BandCounter, low: Sequence[float], high: Sequence[float]) -> list[float]:
    """Of each band's values, the share that lies below `low` or above `high`, and becomes 0 or 1."""
    shares = []
    for band, (below, above) in enumerate(zip(low, high, strict=True)):
        values, times = counter.values(band)
        outside = times[(values < below) | (values > above)].sum()
        shares.append(float(outside / times.sum()) if values.size else 0.0)
    return shares
