"""Pixels at the edges that fill no window are reported; --overlap keeps them; small scenes are reported."""

import numpy as np
import pytest
from support.builds import build, save_picture
from support.geo_files import noise, rows_of, save_raster

from moco_accel.common.errors import UserError

EDGES = (
    "69% of all pixels are left out at right and lower edges, e.g. of a.png (400 × 400); --overlap keeps them all, "
    "--tile-size 200 all but 0%"
)


def test_the_share_of_pixels_left_out_is_reported_and_both_remedies_work(tmp_path):
    scene = save_picture(tmp_path / "s/a.png", 400, 400)
    assert build(tmp_path / "s", tmp_path / "out").notes == [EDGES]
    assert build(tmp_path / "s", tmp_path / "smaller", tile_size=200).num_tiles == 4
    built = build(tmp_path / "s", tmp_path / "overlap", overlap=True)
    assert (built.num_tiles, built.notes) == (4, [])
    seen = np.zeros_like(scene)
    for row in rows_of(tmp_path / "overlap"):
        window = np.s_[row["row"] : row["row"] + 224, row["col"] : row["col"] + 224]
        assert np.array_equal(row["image"].transpose(1, 2, 0), scene[window])
        seen[window] = scene[window]
    assert np.array_equal(seen, scene)


@pytest.mark.parametrize(("height", "width"), [(32, 33), (100, 70), (64, 64), (20, 95), (321, 40)])
def test_windows_that_overlap_cover_every_pixel_and_overlap_evenly(tmp_path, height, width):
    scene = save_raster(tmp_path / "a.tif", noise(2, height, width), names=["B4", "B8"])
    build(tmp_path / "a.tif", tmp_path / "out", tile_size=32, overlap=True)
    rows = rows_of(tmp_path / "out")
    seen = np.zeros_like(scene)
    for row in rows:
        tile = row["image"]
        seen[:, row["row"] : row["row"] + tile.shape[1], row["col"] : row["col"] + tile.shape[2]] = tile
    assert np.array_equal(seen, scene)
    assert len(rows) == -(-height // 32) * -(-width // 32)
    for key in ("row", "col"):
        steps = np.diff(sorted({row[key] for row in rows}))
        assert not steps.size or steps.max() - steps.min() <= 1


def test_few_pixels_at_the_edges_are_not_reported(tmp_path):
    save_picture(tmp_path / "a.png", 65, 65)  # 3 %
    assert build(tmp_path / "a.png", tmp_path / "out", tile_size=32).notes == []


def test_scenes_smaller_than_a_tile_are_reported(tmp_path):
    save_picture(tmp_path / "s/a.png", 64, 64)
    save_picture(tmp_path / "s/b.png", 224, 224)
    assert build(tmp_path / "s", tmp_path / "out").notes == [
        "1 of 2 scenes are smaller than --tile-size 224, e.g. a.png (64 × 64); they are kept whole, and training "
        "enlarges their tiles to the encoder's image size"
    ]


def test_overlap_and_stride_contradict_each_other(tmp_path):
    save_picture(tmp_path / "a.png", 64, 64)
    with pytest.raises(UserError, match="--overlap chooses the stride, which --stride=16 sets; leave one of them out"):
        build(tmp_path / "a.png", tmp_path / "out", stride=16, overlap=True)
