"""What a source of tiles holds, in numbers: one pass over a sample, and what the source says of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.common.pixels import valid_pixels
from moco_accel.inspection.extent import Extent, extents_of
from moco_accel.inspection.processing_baselines import (
    Baselines,
    Darkness,
    as_fields,
    cirrus_of,
    darkness,
    may_be_sentinel2,
    tell_baselines,
)
from moco_accel.recipe.bands import name_bands
from moco_accel.sources.stores import files_of
from moco_accel.sources.tile_facts import BandStatistics
from moco_accel.tiles.band_counter import BandCounter
from moco_accel.tiles.statistics import Measured, read_sample, sample_indices, some_counted

if TYPE_CHECKING:
    from moco_accel.tiles.tiles import Tiles

LABEL_COLUMN = "label"
HISTOGRAM_BARS = 8


@dataclass(frozen=True)
class Inspection:
    """All of it. `sizes` are (height, width) and how many tiles of the sample have it, commonest first.

    `statistics` are in the order of `bands`, over all tiles if `statistics_of_all`, else over the sample.
    `histograms` have HISTOGRAM_BARS counts a band, between its 1st and 99th percentile. `labels` count all tiles;
    `no_labels` says why the column of that name has none. `declared_bands` are all, as stored, where no source names
    them.
    """

    source: str
    tiles: int
    shard_sizes: list[int]
    bytes_on_disk: int | None
    columns: list[str]
    image_column: str | None
    partner_column: str | None
    dtype: str
    bands: list[str] | None
    declared_bands: list[str] | None
    sensor: str | None
    nodata: float | None
    sizes: list[tuple[tuple[int, int], int]]
    measured: Measured
    statistics: BandStatistics
    statistics_of_all: bool
    histograms: list[list[int]]
    labels: dict[str, int] | None
    no_labels: str | None
    extents: list[Extent]
    baselines: Baselines | None

    @property
    def band_names(self) -> list[str]:
        return name_bands(self.bands, len(self.statistics.mean))

    @property
    def constant_bands(self) -> list[int]:
        """Bands that are the same everywhere: nothing can be learnt from them, nor can they be normalised."""
        return [band for band, (low, high) in enumerate(self._extremes) if low == high]

    @property
    def _extremes(self) -> list[tuple[float, float]]:
        return list(zip(self.statistics.minimum, self.statistics.maximum, strict=True))


@dataclass
class _Seen:
    counter: BandCounter | None = None
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    dark: list[Darkness] = field(default_factory=list)
    damaged: list[tuple[int, str]] = field(default_factory=list)


def inspect_tiles(tiles: Tiles, sample: int, on_progress: Callable[[int, int], None] | None = None) -> Inspection:
    """Read `sample` tiles (0: all), the same ones on every call. Raises UserError when none of them can be read."""
    seen = _look(tiles, sample, on_progress)
    counter = some_counted(seen.counter, tiles, seen.damaged)
    measured = Measured(counter, len(sample_indices(len(tiles), sample)), seen.damaged)
    labels, no_labels = class_counts(tiles)
    is_sentinel2 = may_be_sentinel2(tiles.bands, len(counter.pixels), counter.dtype.name, tiles.sensor)
    return Inspection(
        source=tiles.source,
        tiles=len(tiles),
        shard_sizes=tiles.shard_sizes,
        bytes_on_disk=bytes_on_disk(tiles.source),
        columns=tiles.column_names,
        image_column=tiles.image_column,
        partner_column=tiles.partner_column,
        dtype=counter.dtype.name,
        bands=tiles.bands,
        declared_bands=tiles.declared_bands,
        sensor=tiles.sensor or ("sentinel2" if is_sentinel2 else None),
        nodata=tiles.nodata,
        sizes=seen.sizes.most_common(),
        measured=measured,
        statistics=tiles.statistics or measured.statistics,
        statistics_of_all=tiles.statistics is not None or measured.looked_at == len(tiles),
        histograms=histograms(counter),
        labels=labels,
        no_labels=no_labels,
        extents=extents_of(tiles),
        baselines=tell_baselines(seen.dark) if is_sentinel2 else None,
    )


def _look(tiles: Tiles, sample: int, on_progress: Callable[[int, int], None] | None) -> _Seen:
    seen = _Seen()
    for _, tile in read_sample(tiles, sample, seen.damaged, on_progress):
        seen.counter = seen.counter or BandCounter(len(tile), tile.dtype)
        seen.counter.add(tile, valid_pixels(tile, tiles.nodata))
        seen.sizes[(tile.shape[1], tile.shape[2])] += 1
        if may_be_sentinel2(tiles.bands, len(tile), tile.dtype.name, tiles.sensor):
            dark = darkness(tile, cirrus_of(tiles.bands, len(tile)))
            seen.dark += [dark] if dark else []
    return seen


def class_counts(tiles: Tiles) -> tuple[dict[str, int] | None, str | None]:
    """Tiles per class name of the column `label`, classes without tiles among them; None, and why it holds no classes.

    Both are None without such a column.
    """
    if LABEL_COLUMN not in tiles.column_names:
        return None, None
    try:
        numbers, names = tiles.labels(LABEL_COLUMN)
    except UserError as error:  # a column of that name may hold anything: no reason not to look at the tiles
        return None, str(error)
    counts = Counter(numbers)
    return {name: counts[number] for number, name in enumerate(names)}, None


def bytes_on_disk(source: str) -> int | None:
    """Of a folder, file or glob; None of what lies elsewhere."""
    files = files_of(source)
    return sum(file.stat().st_size for file in files) if files else None


def histograms(counter: BandCounter) -> list[list[int]]:
    """Pixels of each band in HISTOGRAM_BARS equal steps from its 1st to its 99th percentile."""
    percentiles = counter.statistics().percentiles
    found = []
    for band, (low, high) in enumerate(zip(percentiles["1"], percentiles["99"], strict=True)):
        values, times = counter.values(band)
        edges = np.linspace(low, max(high, low + 1e-6), HISTOGRAM_BARS + 1)
        found.append(np.histogram(values, edges, weights=times)[0].astype(np.int64).tolist())
    return found


def as_json(found: Inspection) -> dict[str, Any]:
    """Everything as plain data; numbers in stored units, sizes in pixels, `bytes` on disk."""
    statistics, measured = found.statistics, found.measured
    return {
        "source": found.source,
        "tiles": found.tiles,
        "shards": len(found.shard_sizes),
        "shard_sizes": found.shard_sizes,
        "bytes": found.bytes_on_disk,
        "columns": found.columns,
        "image_column": found.image_column,
        "dtype": found.dtype,
        "sensor": found.sensor,
        "nodata": str(found.nodata) if found.nodata != found.nodata else found.nodata,  # JSON has no NaN
        "nodata_share": statistics.nodata_share,
        "looked_at": measured.looked_at,
        "damaged": [{"tile": index, "reason": reason} for index, reason in measured.damaged],
        "sizes": [{"height": height, "width": width, "tiles": tiles} for (height, width), tiles in found.sizes],
        "statistics_of": "all tiles" if found.statistics_of_all else f"a sample of {measured.tiles} tiles",
        "bands": [_band(found, number, name) for number, name in enumerate(found.band_names)],
        "labels": found.labels,
        "extents": [extent.as_fields() for extent in found.extents],
        "baselines": as_fields(found.baselines) if found.baselines else None,
    }


def _band(found: Inspection, number: int, name: str) -> dict[str, Any]:
    statistics = found.statistics
    return {
        "name": name if found.bands else None,
        "pixels": statistics.pixels[number],
        "mean": statistics.mean[number],
        "std": statistics.std[number],
        "minimum": statistics.minimum[number],
        "maximum": statistics.maximum[number],
        "percentiles": {percent: values[number] for percent, values in statistics.percentiles.items()},
        "histogram": found.histograms[number],
    }
