"""What is known of a set of tiles: bands by name, dtype, sensor and per-band statistics; stored with its shards.

OUT/tiles.json holds all of it; the schema of every shard holds all but the statistics (key `moco_accel`), so that a
shard copied alone still knows its bands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FACTS_FILE = "tiles.json"
SCHEMA_KEY = b"moco_accel"
PERCENTILES = (1, 2, 50, 98, 99)
_BINS = 1 << 16

Pixels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BandStatistics:
    """Lists have a number per band, in stored units, over pixels with data. `percentiles` by percent, as text."""

    pixels: list[int]
    mean: list[float]
    std: list[float]
    minimum: list[float]
    maximum: list[float]
    percentiles: dict[str, list[float]]
    nodata_share: float


@dataclass(frozen=True)
class TileFacts:
    """`dtype` is numpy's name of the stored type; `bands` are canonical names, in stored order."""

    bands: list[str]
    dtype: str
    sensor: str | None = None
    nodata: float | None = None
    statistics: BandStatistics | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def schema_metadata(self) -> dict[bytes, bytes]:
        """For a shard's arrow schema, beside what `datasets` writes there."""
        return {SCHEMA_KEY: json.dumps(asdict(replace(self, statistics=None))).encode()}


def facts_from_json(text: str | bytes) -> TileFacts:
    """Raises ValueError (KeyError and TypeError among it) when `text` is not such a description."""
    try:
        fields = json.loads(text)
        statistics = fields.pop("statistics", None)
        return TileFacts(**fields, statistics=BandStatistics(**statistics) if statistics else None)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a description of tiles: {error}") from None


def read_facts(folder: Path, schema_metadata: Mapping[bytes, bytes] | None = None) -> TileFacts | None:
    """Of the shards in `folder`: tiles.json, else what a shard's schema says, else None. Raises ValueError."""
    if (folder / FACTS_FILE).is_file():
        return facts_from_json((folder / FACTS_FILE).read_text())
    if schema_metadata and SCHEMA_KEY in schema_metadata:
        return facts_from_json(schema_metadata[SCHEMA_KEY])
    return None


def valid_pixels(tile: Pixels, nodata: float | Sequence[float | None] | None) -> Mask | None:
    """[height, width], False where `tile` [bands, height, width] holds no data; None: it holds data everywhere.

    `nodata` is one number or one per band, None where there is none. A pixel has no data when any band holds its
    number; in 8 bits, where that is an ordinary value too, when all bands do. Floats have none where a band is NaN or
    infinite, whatever `nodata` is.
    """
    numbers = list(nodata) if isinstance(nodata, Sequence) else [nodata] * len(tile)
    marked = [np.asarray(band == number) for band, number in zip(tile, numbers, strict=True) if number is not None]
    empty = np.zeros(tile.shape[1:], np.bool_)
    if marked:
        empty |= np.logical_and.reduce(marked) if tile.dtype == np.uint8 else np.logical_or.reduce(marked)
    if tile.dtype.kind == "f":
        empty |= ~np.isfinite(tile).all(axis=0)
    return ~empty if empty.any() else None


class BandCounter:
    """Counts tiles' pixels in constant memory: a histogram per band, and sums and extremes of floats; counters add up.

    Percentiles of 8- and 16-bit integers are exact. Floats are counted by their sign, exponent and leading 7 bits of
    mantissa (the upper half of a float32), so that percentiles are within 0.8 % of the value.
    """

    def __init__(self, bands: int, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.all_pixels = 0
        self.pixels = np.zeros(bands, np.int64)
        self.sums = np.zeros((2, bands))  # of values and of their squares
        self.extremes = np.stack([np.full(bands, np.inf), np.full(bands, -np.inf)])
        self.histograms = np.zeros((bands, _BINS), np.int64)

    def add(self, tile: Pixels, valid: Mask | None = None) -> None:
        """Count a tile [bands, height, width]; `valid` [height, width] is False without data. NaN is never counted."""
        self.all_pixels += tile[0].size
        for band, values in enumerate(tile):
            counted = values[valid] if valid is not None else values.ravel()
            if counted.dtype.kind == "f":
                counted = counted[np.isfinite(counted)]
            if not counted.size:
                continue
            self.pixels[band] += counted.size
            if counted.dtype.kind == "f":  # sums and extremes of integers are in their histogram
                as_float = counted.astype(np.float64)
                self.sums[:, band] += as_float.sum(), np.square(as_float).sum()
                self.extremes[0, band] = min(self.extremes[0, band], as_float.min())
                self.extremes[1, band] = max(self.extremes[1, band], as_float.max())
            self.histograms[band] += np.bincount(_bins(counted), minlength=_BINS)

    def merge(self, other: BandCounter) -> None:
        """Take in what another counter of the same bands and dtype has counted."""
        assert self.dtype == other.dtype
        self.all_pixels += other.all_pixels
        self.pixels += other.pixels
        self.sums += other.sums
        self.extremes[0] = np.minimum(self.extremes[0], other.extremes[0])
        self.extremes[1] = np.maximum(self.extremes[1], other.extremes[1])
        self.histograms += other.histograms

    def statistics(self) -> BandStatistics:
        """Of everything counted so far; a band without pixels has zeros."""
        count, values = np.maximum(self.pixels, 1), bin_values(self.dtype)
        sums, extremes = (self.sums, self.extremes) if self.dtype.kind == "f" else self._of_integers(values)
        mean = sums[0] / count
        std = np.sqrt(np.maximum(sums[1] / count - mean**2, 0))
        low, high = np.where(self.pixels > 0, extremes, 0)
        ranks = {p: np.maximum(np.ceil(self.pixels * p / 100), 1) for p in PERCENTILES}
        cumulative = self.histograms.cumsum(1)
        found = {
            str(p): [
                float(values[np.searchsorted(row, rank)]) if row[-1] else 0.0
                for row, rank in zip(cumulative, ranks[p], strict=True)
            ]
            for p in PERCENTILES
        }
        share = 1 - float(self.pixels.max(initial=0)) / self.all_pixels if self.all_pixels else 0.0
        return BandStatistics(
            self.pixels.tolist(), mean.tolist(), std.tolist(), low.tolist(), high.tolist(), found, share
        )

    def _of_integers(self, values: Pixels) -> tuple[Pixels, Pixels]:
        """Sums of values and of their squares, and extremes, per band [2, bands]."""
        as_float, filled = values.astype(np.float64), self.histograms > 0
        sums = np.stack([self.histograms @ as_float, self.histograms @ as_float**2])
        return sums, np.stack([values[filled.argmax(1)], values[::-1][filled[:, ::-1].argmax(1)]])

    def state(self) -> dict[str, Pixels]:
        """Plain arrays, for `numpy.savez`; `restored` gives the counter back."""
        return {
            "all_pixels": np.array(self.all_pixels),
            "pixels": self.pixels,
            "sums": self.sums,
            "extremes": self.extremes,
            "histograms": self.histograms,
        }

    @classmethod
    def restored(cls, dtype: npt.DTypeLike, state: Mapping[str, Pixels]) -> BandCounter:
        counter = cls(len(state["pixels"]), dtype)
        counter.all_pixels = int(state["all_pixels"])
        for name in ("pixels", "sums", "extremes", "histograms"):
            setattr(counter, name, np.array(state[name]))
        return counter


def _bins(values: Pixels) -> npt.NDArray[np.int64]:
    """A number in [0, 65536) for each value, growing with it."""
    if values.dtype.kind == "f":
        upper = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.int64)
        return np.where(upper >= 1 << 15, _BINS - 1 - upper, upper + (1 << 15))
    return values.astype(np.int64) + (1 << 15 if values.dtype.kind == "i" else 0)


def bin_values(dtype: np.dtype[Any]) -> Pixels:
    """The value that each bin stands for."""
    numbers = np.arange(_BINS)
    if dtype.kind == "f":
        upper = np.where(numbers >= 1 << 15, numbers - (1 << 15), _BINS - 1 - numbers).astype(np.uint32)
        return (upper << 16).view(np.float32)
    return numbers - (1 << 15 if dtype.kind == "i" else 0)
