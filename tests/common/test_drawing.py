"""The stretch with which tiles are drawn."""

from __future__ import annotations

import numpy as np

from moco_accel.common.drawing import common_stretch


def test_no_data_of_float_tiles_is_black_and_does_not_count() -> None:
    tile = np.linspace(0, 100, 400, dtype=np.float32).reshape(1, 20, 20).repeat(3, axis=0)
    tile[0, :2] = np.nan
    tile[2] = np.nan
    stretch = common_stretch([tile], (0, 1, 2))
    assert (stretch.low[2], stretch.high[2]) == (0.0, 1.0)
    assert 10 < stretch.low[0] < stretch.high[0] < 100
    rgb = stretch.to_rgb(tile)
    assert not rgb[:2, :, 0].any()
    assert not rgb[..., 2].any()
    assert rgb[-1, -1].tolist() == [255, 255, 0]
