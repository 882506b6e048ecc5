"""Statistics of a sample of tiles, compared with counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from support.tile_files import write_known_tiles, write_tiles

from moco_accel.common.errors import UserError
from moco_accel.inspection.open_without_recipe import open_without_recipe
from moco_accel.sources.tile_metadata import TileMetadata
from moco_accel.tiles.running_statistics import RunningStatistics
from moco_accel.tiles.statistics import clipped_share, measure_statistics, sample_indices, scaled_mean_std


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return write_known_tiles(tmp_path_factory.mktemp("known"))


def test_statistics_match_counts_by_hand(known):
    measured = measure_statistics(open_without_recipe(str(known)), sample=0)
    statistics = measured.running.statistics()
    assert (measured.num_sampled, measured.tiles, measured.damaged) == (10, 10, [])
    assert statistics.pixels == [2560, 2560]
    assert statistics.mean == [4.5, 20.0]
    assert statistics.std == pytest.approx([8.25**0.5, 10.0], rel=1e-12)
    assert (statistics.minimum, statistics.maximum) == ([0, 10], [9, 30])
    # 2,560 pixels: the 1st percentile is the 26th smallest, the median the 1,280th
    assert {p: v for p, v in statistics.percentiles.items() if p in ("1", "50", "99")} == {
        "1": [0, 10],
        "50": [4, 10],
        "99": [9, 30],
    }


def test_nodata_pixels_are_not_counted(tmp_path):
    tile = np.full((2, 8, 8), 100, np.uint16)
    tile[:, :2] = 0  # both bands: nodata
    tile[0, 2] = 0  # one band: nodata in 16 bits, a dark pixel in 8 bits
    for dtype, pixels, mean in (("uint16", 40, [100, 100]), ("uint8", 48, [100 * 40 / 48, 100])):
        folder = tmp_path / dtype
        write_tiles(folder, [tile.astype(dtype)], TileMetadata(["red", "nir"], dtype, nodata=0))
        statistics = measure_statistics(open_without_recipe(str(folder))).running.statistics()
        assert (statistics.pixels, statistics.mean) == ([pixels] * 2, mean)
        assert statistics.nodata_share == 1 - pixels / 64


def test_sample_is_spread_evenly_and_reproducible():
    assert sample_indices(5, 0) == sample_indices(5, 5) == sample_indices(5, 9) == [0, 1, 2, 3, 4]
    chosen = sample_indices(10_000, 100)
    assert chosen == sample_indices(10_000, 100)
    assert [index // 100 for index in chosen] == list(range(100))
    assert len({index % 100 for index in chosen}) > 50  # not periodic, as the columns of a scene are
    assert [index // 2 for index in sample_indices(7, 3)] == [0, 1, 2] or max(sample_indices(7, 3)) == 6
    assert max(sample_indices(2**31, 3)) > 2**30  # no overflow


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_scaled_mean_and_std_match_the_clipped_pixels(dtype):
    rng = np.random.default_rng(0)
    tile = rng.normal(120, 40, (2, 64, 64)).clip(0, 255).astype(dtype)
    running = RunningStatistics(2, dtype)
    running.add(tile)
    low, high = [80.0, 0.0], [150.0, 300.0]
    pixels = ((tile - np.array(low)[:, None, None]) / np.ptp([low, high], 0)[:, None, None]).clip(0, 1)
    mean, std = scaled_mean_std(running, low, high)
    assert mean == pytest.approx(pixels.mean((1, 2)).tolist(), abs=1e-12)
    assert std == pytest.approx(pixels.std((1, 2)).tolist(), abs=1e-12)
    cut = ((tile < np.array(low)[:, None, None]) | (tile > np.array(high)[:, None, None])).mean((1, 2))
    assert clipped_share(running, low, high) == pytest.approx(cut.tolist(), abs=1e-12)


def test_constant_bands_have_std_zero():
    running = RunningStatistics(2, "float32")
    running.add(np.stack([np.full((8, 8), 7, np.float32), np.full((8, 8), np.nan, np.float32)]))
    mean, std = scaled_mean_std(running, [0, 0], [10, 10])
    assert mean == pytest.approx([0.7, 0], rel=1e-6)
    assert std == [0, 0]


def test_sample_without_readable_tiles_is_refused(tmp_path):
    tiles = [np.full((3, 8, 8), value, np.uint8) for value in range(100)]
    write_tiles(tmp_path, tiles, damaged=range(1, 100))
    with pytest.raises(UserError, match=r"none of 3 sampled tiles can be read \(tile \d+: cannot be decoded"):
        measure_statistics(open_without_recipe(str(tmp_path)), 3)
