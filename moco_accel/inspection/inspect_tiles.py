"""Inspect a source of tiles: statistics of a sample, and what the source declares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Pixels
from moco_accel.inspection import processing_baselines
from moco_accel.recipe.bands import band_labels
from moco_accel.sources.tile_metadata import BandStatistics
from moco_accel.tiles.running_statistics import RunningStatistics
from moco_accel.tiles.statistics import MeasuredStatistics, measure_statistics
from moco_accel.tiles.tiles import Tiles

LABEL_COLUMN = "label"
_HISTOGRAM_BARS = 8


@dataclass(frozen=True)
class Extent:
    """The bounding box of all tiles of one coordinate reference system, in its units."""

    crs: str
    tiles: int
    left: float
    bottom: float
    right: float
    top: float


@dataclass(frozen=True)
class Inspection:
    """Facts about a source of tiles.

    Attributes:
        sensor: The declared sensor, or "sentinel2" if the bands tell.
        sizes: Each (height, width) with the number of sampled tiles that have it, most frequent first.
        measured: Statistics of the sample.
        statistics: Statistics in the order of the bands, of all tiles if `statistics_of_all`, else of the sample.
        histograms: Pixels per band in 8 equal steps from its 1st to its 99th percentile.
        labels: Number of tiles per class.
        no_labels: Why the column `label` holds no classes.
    """

    tiles: Tiles
    sensor: str | None
    sizes: list[tuple[tuple[int, int], int]]
    measured: MeasuredStatistics
    statistics: BandStatistics
    statistics_of_all: bool
    histograms: list[list[int]]
    labels: dict[str, int] | None
    no_labels: str | None
    extents: list[Extent]
    baselines: processing_baselines.Baselines | None

    @property
    def dtype(self) -> str:
        return self.measured.running.dtype.name

    @property
    def band_names(self) -> list[str]:
        return band_labels(self.tiles.bands, len(self.statistics.mean))


def inspect_tiles(tiles: Tiles, sample: int, on_progress: Callable[[int, int], None] | None = None) -> Inspection:
    """Read evenly spaced tiles and summarise them.

    Args:
        sample: The number of tiles to read; 0 for all.
        on_progress: Called with the number of tiles read and to read.

    Raises:
        UserError: If none of the tiles can be read.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    dark: list[processing_baselines.Darkness] = []

    def may_be_sentinel2(count: int, dtype: str) -> bool:
        return processing_baselines.may_be_sentinel2(tiles.bands, count, dtype, tiles.sensor)

    def add_tile(tile: Pixels) -> None:
        sizes[(tile.shape[1], tile.shape[2])] += 1
        if may_be_sentinel2(len(tile), tile.dtype.name):
            cirrus = processing_baselines.cirrus_index(tiles.bands, len(tile))
            tile_darkness = processing_baselines.darkness(tile, cirrus)
            dark.extend([tile_darkness] if tile_darkness else [])

    measured = measure_statistics(tiles, sample, on_progress, add_tile)
    running = measured.running
    is_sentinel2 = may_be_sentinel2(len(running.pixels), running.dtype.name)
    labels, no_labels = _count_classes(tiles)
    return Inspection(
        tiles=tiles,
        sensor=tiles.sensor or ("sentinel2" if is_sentinel2 else None),
        sizes=sizes.most_common(),
        measured=measured,
        statistics=tiles.statistics or measured.running.statistics(),
        statistics_of_all=tiles.statistics is not None or measured.num_sampled == len(tiles),
        histograms=count_histograms(running),
        labels=labels,
        no_labels=no_labels,
        extents=_find_extents(tiles),
        baselines=processing_baselines.classify_baselines(dark) if is_sentinel2 else None,
    )


def _count_classes(tiles: Tiles) -> tuple[dict[str, int] | None, str | None]:
    """Return tiles per class of the column `label`, or why it holds no classes; both are None without the column."""
    if LABEL_COLUMN not in tiles.column_names:
        return None, None
    try:
        numbers, names = tiles.labels(LABEL_COLUMN)
    except UserError as error:  # a column of that name may hold anything
        return None, str(error)
    counts = Counter(numbers)
    return {name: counts[number] for number, name in enumerate(names)}, None


def _find_extents(tiles: Tiles) -> list[Extent]:
    """Return one extent per `crs`, most tiles first, from the columns that `moco-data build` writes."""
    if "bounds" not in tiles.column_names:
        return []
    bounds = tiles.column("bounds")
    names = tiles.column("crs") if "crs" in tiles.column_names else [None] * len(bounds)
    by_crs: dict[str, list[list[float]]] = {}
    for name, edges in zip(names, bounds, strict=True):
        if edges is not None and len(edges) == 4:
            by_crs.setdefault(name or "unknown", []).append(edges)
    extents = []
    for crs, boxes in by_crs.items():
        left, bottom, right, top = zip(*boxes, strict=True)
        extents.append(Extent(crs, len(boxes), min(left), min(bottom), max(right), max(top)))
    return sorted(extents, key=lambda extent: -extent.tiles)


def bytes_on_disk(tiles: Tiles) -> int | None:
    """Return the size of the files that hold the tiles; None for a source that is not on this machine."""
    files = tiles.files
    return sum(file.stat().st_size for file in files) if files else None


def count_histograms(counter: RunningStatistics) -> list[list[int]]:
    """Count pixels of each band in 8 equal steps from its 1st to its 99th percentile."""
    percentiles = counter.statistics().percentiles
    histograms = []
    for band, (low, high) in enumerate(zip(percentiles["1"], percentiles["99"], strict=True)):
        values, times = counter.values(band)
        edges = np.linspace(low, max(high, low + 1e-6), _HISTOGRAM_BARS + 1)
        histograms.append(np.histogram(values, edges, weights=times)[0].astype(np.int64).tolist())
    return histograms


def inspection_as_json(found: Inspection) -> dict[str, Any]:
    """Return an inspection as JSON fields: values in stored units, sizes in pixels, `bytes` on disk."""
    tiles, measured = found.tiles, found.measured
    return {
        "source": tiles.source,
        "tiles": len(tiles),
        "shards": len(tiles.shard_sizes),
        "shard_sizes": tiles.shard_sizes,
        "bytes": bytes_on_disk(tiles),
        "columns": tiles.column_names,
        "image_column": tiles.image_column,
        "dtype": found.dtype,
        "sensor": found.sensor,
        "nodata": str(tiles.nodata) if tiles.nodata != tiles.nodata else tiles.nodata,  # JSON has no NaN
        "nodata_share": found.statistics.nodata_share,
        "looked_at": measured.num_sampled,
        "damaged": [{"tile": index, "reason": reason} for index, reason in measured.damaged],
        "sizes": [{"height": height, "width": width, "tiles": count} for (height, width), count in found.sizes],
        "statistics_of": "all tiles" if found.statistics_of_all else f"a sample of {measured.tiles} tiles",
        "bands": [_band_as_json(found, number, name) for number, name in enumerate(found.band_names)],
        "labels": found.labels,
        "extents": [asdict(extent) for extent in found.extents],
        "baselines": processing_baselines.baselines_as_json(found.baselines) if found.baselines else None,
    }


def _band_as_json(found: Inspection, number: int, name: str) -> dict[str, Any]:
    statistics = found.statistics
    return {
        "name": name if found.tiles.bands else None,
        **{field: getattr(statistics, field)[number] for field in ("pixels", "mean", "std", "minimum", "maximum")},
        "percentiles": {percent: values[number] for percent, values in statistics.percentiles.items()},
        "histogram": found.histograms[number],
    }
