"""Per-band statistics in constant memory, compared with NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from moco_accel.tiles.running_statistics import RunningStatistics


def tiles(dtype: str) -> np.ndarray:  # type: ignore[type-arg]
    values = np.random.default_rng(0).normal(0, 300, (6, 2, 40, 40))
    shift = {"uint8": 100, "uint16": 2000}.get(dtype, 0)
    return (values / (10 if dtype == "uint8" else 1) + shift).clip(0 if dtype[0] == "u" else None).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_statistics_match_numpy(dtype: str) -> None:
    """Two halves are counted tile by tile and merged; one is saved and restored before."""
    all_tiles = tiles(dtype)
    first, second = RunningStatistics(2, dtype), RunningStatistics(2, dtype)
    for tile in all_tiles[:4]:
        first.add(tile)
    for tile in all_tiles[4:]:
        second.add(tile)
    first = RunningStatistics.from_state(dtype, first.state())
    first.merge(second)
    found = first.statistics()
    for band in range(2):
        values = all_tiles[:, band].astype(np.float64)
        assert found.pixels[band] == values.size
        assert (found.minimum[band], found.maximum[band]) == (values.min(), values.max())
        assert found.mean[band] == pytest.approx(values.mean(), rel=1e-12)
        assert found.std[band] == pytest.approx(values.std(), rel=1e-9)  # worst measured: 2e-11
        for percent, per_band in found.percentiles.items():
            exact = float(np.percentile(values, int(percent), method="inverted_cdf"))
            assert per_band[band] == exact  # all 9,600 values are in the sample


@pytest.mark.parametrize("centre", [300.0, 101_325.0, 0.001])
def test_percentiles_of_many_floats_are_close_at_any_magnitude(centre: float) -> None:
    """Kelvin, pressure and reflectance; a sample of every 32nd value, of two merged halves, one saved and restored."""
    values = np.random.default_rng(1).normal(centre, centre / 1000, (24, 1, 256, 256)).astype(np.float32)
    first, second = RunningStatistics(1, "float32"), RunningStatistics(1, "float32")
    for tile in values[:20]:
        first.add(tile)
    for tile in values[20:]:
        second.add(tile)
    restored = RunningStatistics.from_state("float32", first.state())
    second.merge(restored)
    found = second.statistics().percentiles
    spread = centre / 1000
    for percent, tolerance in (("1", 0.06), ("50", 0.02), ("99", 0.06)):  # worst measured: 0.022, 0.008, 0.022
        assert abs(found[percent][0] - np.percentile(values, int(percent))) < tolerance * spread


def test_nodata_pixels_are_not_counted() -> None:
    tile = np.array([[[1.0, 2.0], [np.nan, 4.0]], [[10.0, 20.0], [30.0, 40.0]]], np.float32)
    running = RunningStatistics(2, "float32")
    running.add(tile, np.array([[True, False], [True, True]]))
    found = running.statistics()
    assert (found.pixels, found.mean) == ([2, 3], [2.5, 80 / 3])
    assert found.nodata_share == 0.25
    empty = RunningStatistics(1, "uint16").statistics()
    assert (empty.mean, empty.percentiles["99"], empty.nodata_share) == ([0.0], [0.0], 0.0)
