import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from support.builds import build
from support.geo_files import FIXTURES, UTM, facts_of, noise, rows_of, save_raster

from moco_accel.common.errors import UserError
from moco_accel.imagery.labels import LabelClasses
from moco_accel.imagery.options import BuildOptions
from moco_accel.imagery.plan import BuildPlan
from moco_accel.recipe.bands import RGB
from moco_accel.recipe.data_sections import Data
from moco_accel.scenes.find_scenes import Scene
from moco_accel.scenes.grids import Grid
from moco_accel.scenes.layouts import Layout
from moco_accel.tiles.tiles import open_tiles


def band(sensor, name):
    with rasterio.open(FIXTURES / sensor / name) as file:
        return file.read(1), file.transform


def naive_bilinear(coarse, own, fine, height, width):
    """Interpolate `coarse` at the centres of the fine grid's pixels, by definition."""
    found = np.empty((height, width))
    for row in range(height):
        for col in range(width):
            x, y = fine @ (col + 0.5, row + 0.5)
            across, down = ~own @ (x, y)
            left, top = int(np.floor(across - 0.5)), int(np.floor(down - 0.5))
            right_weight, lower_weight = across - 0.5 - left, down - 0.5 - top
            total = weights = 0.0
            for r, wr in ((top, 1 - lower_weight), (top + 1, lower_weight)):
                for c, wc in ((left, 1 - right_weight), (left + 1, right_weight)):
                    if 0 <= r < coarse.shape[0] and 0 <= c < coarse.shape[1]:
                        total, weights = total + wr * wc * coarse[r, c], weights + wr * wc
            found[row, col] = total / weights
    return found


def test_all_bands_of_a_sentinel2_scene(tmp_path):
    """Files of 10, 20 and 60 m whose extents differ by a pixel; one named .jp2 is a TIFF."""
    shutil.copytree(FIXTURES / "sentinel2", tmp_path / "src")
    (tmp_path / "src/s2_B02.tif").rename(tmp_path / "src/s2_B02.jp2")
    built = build(tmp_path / "src", tmp_path / "out", tile_size=64)
    names = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]
    facts = facts_of(tmp_path / "out")
    assert (facts["bands"], facts["dtype"], facts["sensor"], facts["nodata"]) == (names, "uint16", "sentinel2", 0)
    assert built.notes[0].startswith(
        "B1, B5, B6, B7, B8A, B9, B10, B11, B12 were resampled to the finest band's pixels"
    )
    rows = rows_of(tmp_path / "out")
    assert [(row["row"], row["col"]) for row in rows] == [(0, 0), (0, 64), (64, 0), (64, 64)]
    tile = rows[3]["image"]
    assert (tile.dtype, tile.shape) == (np.uint16, (13, 64, 64))
    fine, where = band("sentinel2", "s2_B04.tif")
    assert np.array_equal(tile[3], fine[64:, 64:])
    corner = where @ (64, 64)
    assert rows[3]["bounds"] == [corner[0], corner[1] - 640, corner[0] + 640, corner[1]]
    assert (rows[3]["crs"], rows[3]["scene"]) == (UTM, "s2")
    for name, index in (("B05", 4), ("B01", 0), ("B10", 10)):
        coarse, own = band("sentinel2", f"s2_{name}.tif")
        expected = naive_bilinear(coarse, own, where, 128, 128)
        for row in rows:
            part = expected[row["row"] : row["row"] + 64, row["col"] : row["col"] + 64]
            assert abs(row["image"][index] - part).max() <= 0.51  # rounding to whole numbers


def test_bands_are_chosen_by_name_and_order(tmp_path):
    build(FIXTURES / "sentinel2", tmp_path / "out", tile_size=128, bands=("b08", "B4", "B03"))
    assert facts_of(tmp_path / "out")["bands"] == ["B8", "B4", "B3"]
    expected = [band("sentinel2", f"s2_{name}.tif")[0] for name in ("B08", "B04", "B03")]
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], expected)  # 16 bits: never a picture
    with pytest.raises(UserError, match=r"--bands=\[B4, B13\] but 's2' has \[B1, .*B12\]: B13 is not there"):
        build(FIXTURES / "sentinel2", tmp_path / "none", bands=("B4", "B13"))


def test_panchromatic_band_is_read_only_if_selected(tmp_path):
    built = build(FIXTURES / "landsat8", tmp_path / "out", tile_size=32)
    assert (built.metadata.sensor, built.metadata.bands[6:], built.num_tiles) == (
        "landsat8",
        ["B7", "B9", "B10", "B11"],
        4,
    )
    assert built.notes[0].startswith("B8 is panchromatic and was left out")
    fine = build(FIXTURES / "landsat8", tmp_path / "fine", tile_size=64, bands=("B8", "B4"))
    assert (fine.num_tiles, fine.notes[0][:18]) == (1, "B4 were resampled ")
    pan, where = band("landsat8", "l8_B8.tif")
    tile = rows_of(tmp_path / "fine")[0]
    # only what all bands cover: B4 begins half a pixel of 15 m to the right of B8 and below it
    assert np.array_equal(tile["image"][0], pan[1:65, 1:65])
    assert tile["bounds"] == [*(where @ (1, 65)), *(where @ (65, 1))]


@pytest.mark.parametrize(("dtype", "count"), [("uint8", 4), ("uint16", 3), ("int16", 1), ("float32", 2)])
def test_other_bands_and_dtypes_are_stored_unchanged(tmp_path, dtype, count):
    names = [f"layer {number}" for number in range(count)]
    pixels = save_raster(
        tmp_path / "a.tif", noise(count, 50, 70, dtype), names=names, tiled=True, blockxsize=16, blockysize=16
    )
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32, stride=20)
    assert (built.metadata.bands, built.metadata.dtype, built.num_tiles) == (names, dtype, 2)
    for row in rows_of(tmp_path / "out"):
        assert row["image"].dtype == dtype
        assert np.array_equal(row["image"], pixels[:, :32, row["col"] : row["col"] + 32])
    statistics = facts_of(tmp_path / "out")["statistics"]
    both = np.concatenate([pixels[:, :32, :32], pixels[:, :32, 20:52]], axis=2)
    assert statistics["mean"] == pytest.approx(both.mean(axis=(1, 2)), rel=1e-6)


def test_bands_without_names_must_be_named(tmp_path):
    save_raster(tmp_path / "src/a.tif", noise(4, 32, 32), photometric="minisblack")
    with pytest.raises(UserError, match=r"uint16 bands without names \(4\); .* e.g. --band-names red,green,blue,nir"):
        build(tmp_path / "src", tmp_path / "out")
    with pytest.raises(UserError, match="has 4 bands, --band-names=red,green names 2"):
        build(tmp_path / "src", tmp_path / "out", band_names=("red", "green"))
    built = build(tmp_path / "src", tmp_path / "out", band_names=("R", "G", "B", "NIR"))
    assert built.metadata.bands == ["red", "green", "blue", "nir"]


def test_scenes_with_other_bands_compete(tmp_path):
    """The first scene by name is a small preview."""
    save_raster(tmp_path / "src/a_preview.tif", noise(3, 32, 32, "uint8"))
    for name in ("b", "c"):
        save_raster(tmp_path / f"src/{name}.tif", noise(2, 64, 64), names=["B4", "B8"])
    save_raster(tmp_path / "src/d.tif", noise(2, 64, 64), names=["B8", "B4"])
    with pytest.raises(UserError) as caught:
        build(tmp_path / "src", tmp_path / "out", tile_size=32)
    assert str(caught.value).endswith(
        "holds 2 kinds of imagery, of which one can be built; choose with the option behind it: 2 files (8 windows) of "
        "[B4, B8] uint16, e.g. b.tif: --bands B4,B8; 1 file (4 windows) of [B8, B4] uint16, e.g. d.tif: --bands B8,B4"
    )
    again = build(tmp_path / "src", tmp_path / "both", tile_size=32, bands=("B4", "B8"))
    assert again.num_tiles == 12
    assert "left out, because they have names of quick-looks: 1 file, e.g. a_preview.tif; " in "".join(again.notes)


def test_multi_band_files_named_like_bands_are_separate_scenes(tmp_path):
    one = save_raster(tmp_path / "src/plot_B1.tif", noise(3, 32, 32, "uint8", seed=1))
    two = save_raster(tmp_path / "src/plot_B2.tif", noise(3, 32, 32, "uint8", seed=2))
    build(tmp_path / "src", tmp_path / "out")
    assert [row["path"] for row in rows_of(tmp_path / "out")] == ["plot_B1.tif", "plot_B2.tif"]
    assert [row["image"].tolist() for row in rows_of(tmp_path / "out")] == [one.tolist(), two.tolist()]


def test_jpeg2000_and_strips_and_large_strides_read_the_same_pixels(tmp_path):
    pixels = save_raster(tmp_path / "strips/a.tif", noise(1, 200, 300), names=["B8"])
    with rasterio.open(tmp_path / "strips/a.tif") as file:
        profile = file.profile | {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES", "blockxsize": 64}
    profile |= {"blockysize": 64, "tiled": True}
    (tmp_path / "jp2").mkdir()
    with rasterio.open(tmp_path / "jp2/a_B08.jp2", "w", **profile) as file:
        file.write(pixels)
    for folder in ("strips", "jp2"):
        build(tmp_path / folder, tmp_path / f"out_{folder}", tile_size=32, stride=100)
        rows = rows_of(tmp_path / f"out_{folder}")
        assert [(row["row"], row["col"]) for row in rows] == [(r, c) for r in (0, 100) for c in (0, 100, 200)]
        for row in rows:
            window = pixels[:, row["row"] : row["row"] + 32, row["col"] : row["col"] + 32]
            assert np.array_equal(row["image"], window)


def test_scenes_with_different_units_are_reported(tmp_path):
    for name in ("S2A_N0209_x", "S2A_N0400_x", "LC08_x"):
        save_raster(tmp_path / f"{name}/a.tif", noise(1, 32, 32), names=["B4"])
    built = build(tmp_path, tmp_path / "out")
    assert built.metadata.sensor is None
    assert built.notes[:2] == [
        "landsat8 and sentinel2 use the same names for these bands, but their values differ",
        "Sentinel-2 scenes from before and after baseline 04.00 are mixed; their values differ by 1,000",
    ]


def test_training_reads_built_tiles(tmp_path):
    """Training reads the tiles, the order of bands and the statistics that a build wrote."""
    build(FIXTURES / "sentinel2", tmp_path / "out", tile_size=64)
    tiles = open_tiles(str(tmp_path / "out"), Data(scaling="percentiles", bands=["B8", "B4", "B1"]), 3)
    stored = rows_of(tmp_path / "out")
    assert (len(tiles), tiles.bands, tiles.sensor) == (4, ["B8", "B4", "B1"], "sentinel2")
    assert np.array_equal(tiles[2].numpy(), stored[2]["image"][[7, 3, 0]])
    every = np.stack([row["image"] for row in stored])
    assert tiles.statistics.mean == pytest.approx(every[:, [7, 3, 0]].mean(axis=(0, 2, 3)))


def test_damage_within_a_scene_skips_only_its_tiles(tmp_path):
    path = tmp_path / "a.tif"
    save_raster(path, noise(2, 64, 64), names=["x", "y"], tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    raw = bytearray(path.read_bytes())
    with rasterio.open(path) as file:
        offset = int(file.tags(ns="TIFF", bidx=1).get(f"BLOCK_OFFSET_{3}_{0}", 0)) or len(raw) - 3000
    raw[offset : offset + 400] = b"\xff" * 400
    path.write_bytes(raw)
    built = build(path, tmp_path / "out", tile_size=32)
    assert built.skipped == {"damaged": 1}
    assert built.num_tiles == 3


def test_bands_on_different_grids_are_left_out(tmp_path):
    save_raster(tmp_path / "far/x_B1.tif", noise(1, 32, 32))
    save_raster(tmp_path / "far/x_B2.tif", noise(1, 32, 32), origin=(10_000, 0))
    save_raster(tmp_path / "zones/x_B1.tif", noise(1, 32, 32))
    save_raster(tmp_path / "zones/x_B2.tif", noise(1, 32, 32), crs="EPSG:32619")
    save_raster(tmp_path / "mixed/x_B1.tif", noise(1, 32, 32))
    save_raster(tmp_path / "mixed/x_B2.tif", noise(1, 32, 32, "int16"))
    for folder, reason in (("far", "do not overlap"), ("zones", "different coordinate"), ("mixed", "different dtypes")):
        with pytest.raises(UserError, match=reason):
            build(tmp_path / folder, tmp_path / "out")


def test_a_work_unit_is_bounded_in_bytes():
    """One small picture, then large ones, then many small ones."""
    sides = [8, *[2048] * 20, *[8] * 2000]
    layouts = [
        Layout(Scene(f"{i}.png", (Path(f"{i}.png"),)), RGB, "uint8", Grid(side, side), selected=(0, 1, 2))
        for i, side in enumerate(sides)
    ]
    plan = BuildPlan(Path(), BuildOptions(tile_size=512), layouts, [], LabelClasses(), [], [])
    units = list(plan.units())
    sizes = [sum(len(job) * min(512, job.layout.grid.width) ** 2 * 3 for job in unit) for unit in units]
    assert max(sizes) <= 32 << 20
    assert len(units) == 10 + 3  # two large ones (of 12 MiB) at a time; 480 small ones with the last two, then 512
    assert max(sum(map(len, unit)) for unit in units) == 512
    assert [job.layout for unit in units for job in unit] == layouts
