"""Tiles' pixels counted in constant memory, band by band; counters of parts add up to that of the whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moco_accel.common.pixels import Mask, Pixels
from moco_accel.sources.tile_facts import BandStatistics

PERCENTILES = (1, 2, 50, 98, 99)
_BINS = 1 << 16
_KEPT = 1 << 16  # of a float band's values; the 1st percentile is then between the 0.85th and the 1.15th


class BandCounter:
    """Integers go into a histogram, which knows all about them. Of floats, sums and extremes are kept, and a sample.

    The sample is of every `every[band]`-th value, drawn at random with a seed; all values while they are few.
    """

    def __init__(self, bands: int, dtype: npt.DTypeLike) -> None:
        self.dtype, self._draw = np.dtype(dtype), np.random.default_rng(0)
        self.all_pixels = 0
        self.pixels = np.zeros(bands, np.int64)
        self._histograms = np.zeros((bands, 0 if self._of_floats else _BINS), np.int64)
        self._sums = np.zeros((2, bands))  # of values and of their squares
        self._extremes = np.stack([np.full(bands, np.inf), np.full(bands, -np.inf)])
        self._samples = [np.empty(0, np.float32)] * bands
        self._every = np.ones(bands, np.int64)

    @property
    def _of_floats(self) -> bool:
        return self.dtype.kind == "f"

    def add(self, tile: Pixels, valid: Mask | None = None) -> None:
        """Count a tile [bands, height, width]; `valid` [height, width] is False without data. NaN is never counted."""
        self.all_pixels += tile[0].size
        for band, values in enumerate(tile):
            counted = values[valid] if valid is not None else values.ravel()
            if self._of_floats:
                counted = counted[np.isfinite(counted)]
                self._add_floats(band, counted)
            else:
                self._histograms[band] += np.bincount(counted.astype(np.int64) - self._least, minlength=_BINS)
            self.pixels[band] += counted.size

    def _add_floats(self, band: int, counted: Pixels) -> None:
        if not counted.size:
            return
        values = counted.astype(np.float64)
        self._sums[:, band] += values.sum(), np.square(values).sum()
        self._extremes[0, band] = min(self._extremes[0, band], values.min())
        self._extremes[1, band] = max(self._extremes[1, band], values.max())
        if self._every[band] > 1:
            counted = counted[self._draw.random(counted.size) * self._every[band] < 1]
        self._keep(band, [self._samples[band], counted])

    def _keep(self, band: int, samples: list[Pixels]) -> None:
        kept = np.concatenate(samples)
        while kept.size > _KEPT:
            kept, self._every[band] = kept[::2], 2 * self._every[band]
        self._samples[band] = kept

    def merge(self, other: BandCounter) -> None:
        """Take in what another counter of the same bands and dtype has counted."""
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
            self._keep(band, parts)

    def values(self, band: int) -> tuple[Pixels, npt.NDArray[np.int64]]:
        """What was counted of a band: values, growing, and how often each; of many floats, the sample's."""
        if self._of_floats:
            kept = np.sort(self._samples[band]).astype(np.float64)
            return kept, np.ones(kept.size, np.int64)
        filled = np.flatnonzero(self._histograms[band])
        return filled + self._least, self._histograms[band][filled]

    @property
    def _least(self) -> int:
        """The value of the first bin."""
        return -(1 << 15) if self.dtype.kind == "i" else 0

    def statistics(self) -> BandStatistics:
        """Of everything counted so far; a band without pixels has zeros."""
        counted = [self.values(band) for band in range(len(self.pixels))]
        moments = np.array([self._moments(band, *pair) for band, pair in enumerate(counted)]).T
        mean, std, low, high = moments.tolist()
        percentiles = {str(p): [_percentile(*pair, p) for pair in counted] for p in PERCENTILES}
        share = 1 - float(self.pixels.max(initial=0)) / self.all_pixels if self.all_pixels else 0.0
        return BandStatistics(self.pixels.tolist(), mean, std, low, high, percentiles, share)

    def _moments(self, band: int, values: Pixels, times: Pixels) -> tuple[float, float, float, float]:
        """Mean, standard deviation, smallest and largest value."""
        if not values.size:
            return 0.0, 0.0, 0.0, 0.0
        if self._of_floats:
            (total, squares), (low, high) = self._sums[:, band], self._extremes[:, band]
        else:
            as_float = values.astype(np.float64)
            (total, squares), (low, high) = (times @ as_float, times @ as_float**2), values[[0, -1]]
        mean = total / self.pixels[band]
        return mean, float(np.sqrt(max(squares / self.pixels[band] - mean**2, 0))), low, high

    def state(self) -> dict[str, Pixels]:
        """Plain arrays, for `numpy.savez`; `restored` gives the counter back."""
        arrays = {name: getattr(self, f"_{name}") for name in ("histograms", "sums", "extremes", "every")}
        samples = {f"sample{band}": sample for band, sample in enumerate(self._samples)}
        return {"all_pixels": np.array(self.all_pixels), "pixels": self.pixels, **arrays, **samples}

    @classmethod
    def restored(cls, dtype: npt.DTypeLike, state: Mapping[str, Pixels]) -> BandCounter:
        counter = cls(len(state["pixels"]), dtype)
        counter.all_pixels, counter.pixels = int(state["all_pixels"]), np.array(state["pixels"])
        for name in ("histograms", "sums", "extremes", "every"):
            setattr(counter, f"_{name}", np.array(state[name]))
        counter._samples = [np.array(state[f"sample{band}"]) for band in range(len(counter.pixels))]
        return counter


def _percentile(values: Pixels, times: Pixels, percent: float) -> float:
    """The smallest value that at least `percent` of all are no larger than."""
    if not values.size:
        return 0.0
    ends = times.cumsum()
    return float(values[np.searchsorted(ends, max(np.ceil(ends[-1] * percent / 100), 1))])
