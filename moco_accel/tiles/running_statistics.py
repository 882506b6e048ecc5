"""Compute per-band statistics in constant memory, tile by tile; partial results can be merged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moco_accel.common.pixels import Mask, Pixels
from moco_accel.sources.tile_metadata import BandStatistics

PERCENTILES = (1, 2, 50, 98, 99)
_BINS = 1 << 16
_MAX_SAMPLES = 1 << 16  # of a float band; the 1st percentile then lies between the 0.85th and the 1.15th
_ARRAYS = ("histograms", "sums", "extremes", "every")


class RunningStatistics:
    """Statistics of all tiles that were added: exact histograms of integers; sums, extremes and a sample of floats.

    The sample of a float band holds all values at first, later every `every[band]`-th on average, drawn with a seed.

    Attributes:
        all_pixels: Pixels of all tiles, including those without data.
        pixels: Pixels with data, per band.
    """

    def __init__(self, bands: int, dtype: npt.DTypeLike) -> None:
        self.dtype, self._random = np.dtype(dtype), np.random.default_rng(0)
        self._is_float = self.dtype.kind == "f"
        self._first_bin = -(1 << 15) if self.dtype.kind == "i" else 0
        self.all_pixels = 0
        self.pixels = np.zeros(bands, np.int64)
        self._histograms = np.zeros((bands, 0 if self._is_float else _BINS), np.int64)
        self._sums = np.zeros((2, bands))  # of values and of their squares
        self._extremes = np.stack([np.full(bands, np.inf), np.full(bands, -np.inf)])
        self._samples = [np.empty(0, np.float32)] * bands
        self._every = np.ones(bands, np.int64)

    def add(self, tile: Pixels, valid: Mask | None = None) -> None:
        """Count a tile's pixels. NaN and infinity are never counted.

        Args:
            tile: [bands, height, width].
            valid: [height, width], False where there is no data; None: everywhere is data.
        """
        self.all_pixels += tile[0].size
        for band, values in enumerate(tile):
            counted = values[valid] if valid is not None else values.ravel()
            if self._is_float:
                counted = counted[np.isfinite(counted)]
                self._add_floats(band, counted)
            else:
                self._histograms[band] += np.bincount(counted.astype(np.int64) - self._first_bin, minlength=_BINS)
            self.pixels[band] += counted.size

    def _add_floats(self, band: int, counted: Pixels) -> None:
        if not counted.size:
            return
        values = counted.astype(np.float64)
        self._sums[:, band] += values.sum(), np.square(values).sum()
        self._extremes[0, band] = min(self._extremes[0, band], values.min())
        self._extremes[1, band] = max(self._extremes[1, band], values.max())
        if self._every[band] > 1:
            counted = counted[self._random.random(counted.size) * self._every[band] < 1]
        self._set_sample(band, [self._samples[band], counted])

    def _set_sample(self, band: int, parts: list[Pixels]) -> None:
        sample = np.concatenate(parts)
        while sample.size > _MAX_SAMPLES:
            sample, self._every[band] = sample[::2], 2 * self._every[band]
        self._samples[band] = sample

    def merge(self, other: RunningStatistics) -> None:
        """Add what `other`, of the same bands and dtype, has counted."""
        assert self.dtype == other.dtype
        self.all_pixels += other.all_pixels
        self.pixels += other.pixels
        self._sums += other._sums
        self._extremes[0] = np.minimum(self._extremes[0], other._extremes[0])
        self._extremes[1] = np.maximum(self._extremes[1], other._extremes[1])
        self._histograms += other._histograms
        for band, (mine, theirs) in enumerate(zip(self._every, other._every, strict=True)):
            self._every[band] = max(mine, theirs)
            parts = [self._samples[band][:: max(theirs // mine, 1)], other._samples[band][:: max(mine // theirs, 1)]]
            self._set_sample(band, parts)

    def values(self, band: int) -> tuple[Pixels, npt.NDArray[np.int64]]:
        """Return the sorted values of a band and the count of each; of many floats, those of the sample."""
        if self._is_float:
            sample = np.sort(self._samples[band]).astype(np.float64)
            return sample, np.ones(sample.size, np.int64)
        filled = np.flatnonzero(self._histograms[band])
        return filled + self._first_bin, self._histograms[band][filled]

    def statistics(self) -> BandStatistics:
        """Return the statistics so far; those of a band without pixels are zero."""
        counted = [self.values(band) for band in range(len(self.pixels))]
        moments = np.array([self._moments(band, *pair) for band, pair in enumerate(counted)]).T
        mean, std, low, high = moments.tolist()
        percentiles = {str(p): [_percentile(*pair, p) for pair in counted] for p in PERCENTILES}
        share = 1 - float(self.pixels.max(initial=0)) / self.all_pixels if self.all_pixels else 0.0
        return BandStatistics(self.pixels.tolist(), mean, std, low, high, percentiles, share)

    def _moments(self, band: int, values: Pixels, counts: Pixels) -> tuple[float, float, float, float]:
        """Return mean, standard deviation, minimum and maximum."""
        if not values.size:
            return 0.0, 0.0, 0.0, 0.0
        if self._is_float:
            (total, squares), (low, high) = self._sums[:, band], self._extremes[:, band]
        else:
            as_float = values.astype(np.float64)
            (total, squares), (low, high) = (counts @ as_float, counts @ as_float**2), values[[0, -1]]
        mean = total / self.pixels[band]
        return mean, float(np.sqrt(max(squares / self.pixels[band] - mean**2, 0))), low, high

    def state(self) -> dict[str, Pixels]:
        """Return plain arrays for `numpy.savez`, from which `from_state` restores the object."""
        arrays = {name: getattr(self, f"_{name}") for name in _ARRAYS}
        samples = {f"sample{band}": sample for band, sample in enumerate(self._samples)}
        return {"all_pixels": np.array(self.all_pixels), "pixels": self.pixels, **arrays, **samples}

    @classmethod
    def from_state(cls, dtype: npt.DTypeLike, state: Mapping[str, Pixels]) -> RunningStatistics:
        """Restore what `state` returned."""
        restored = cls(len(state["pixels"]), dtype)
        restored.all_pixels, restored.pixels = int(state["all_pixels"]), np.array(state["pixels"])
        for name in _ARRAYS:
            setattr(restored, f"_{name}", np.array(state[name]))
        restored._samples = [np.array(state[f"sample{band}"]) for band in range(len(restored.pixels))]
        return restored


def _percentile(values: Pixels, counts: Pixels, percent: float) -> float:
    """Return the smallest value that at least `percent` % of all values do not exceed."""
    if not values.size:
        return 0.0
    ends = counts.cumsum()
    return float(values[np.searchsorted(ends, max(np.ceil(ends[-1] * percent / 100), 1))])
