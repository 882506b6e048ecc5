"""Pixels without data: nodata numbers, NaN, masks and alpha, on the scene's own grid and on another."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from support.builds import build
from support.geo_files import facts_of, noise, rows_of, save_raster

from moco_accel.recipe.data_sections import Data
from moco_accel.scenes.layouts import LOWEST_FLOAT as LOWEST
from moco_accel.sources.tile_facts import SCHEMA_KEY, facts_from_json
from moco_accel.tiles.statistics import measure_statistics
from moco_accel.tiles.tiles import open_tiles


def test_tiles_without_data_are_skipped_above_a_share(tmp_path):
    pixels = noise(2, 32, 96)
    pixels[0, :, 32:36] = 7  # an eighth of the second tile, in one band
    pixels[1, 0, 64:96] = 7  # a thirty-second of the third
    save_raster(tmp_path / "a.tif", pixels, names=["x", "y"], nodata=7)
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32)
    assert (built.num_tiles, built.skipped, built.facts.nodata) == (2, {"no data": 1}, 7)
    assert built.facts.statistics.nodata_share == pytest.approx(32 / 2048)
    assert built.facts.statistics.minimum[0] >= 100
    assert build(tmp_path / "a.tif", tmp_path / "all", tile_size=32, max_nodata=0.125).num_tiles == 3
    assert build(tmp_path / "a.tif", tmp_path / "none", tile_size=32, max_nodata=0.0).num_tiles == 1
    assert build(tmp_path / "a.tif", tmp_path / "other", tile_size=32, nodata=8).num_tiles == 3


def test_in_8_bits_all_bands_must_have_the_nodata_number(tmp_path):
    """Dark water is 0 in red and lives."""
    pixels = noise(3, 32, 64, "uint8")
    pixels[0] = 0
    pixels[:, :, 32:] = 0
    save_raster(tmp_path / "a.tif", pixels, nodata=0)
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32)
    assert (built.num_tiles, built.skipped) == (1, {"no data": 1})


def test_a_satellites_zeros_are_no_data_when_none_is_declared(tmp_path):
    pixels = noise(2, 32, 64)
    pixels[0] = 0
    pixels[:, :, 32:] = 0
    for name, expected in (("S2A_scene.tif", 1), ("scene.tif", 2)):
        save_raster(tmp_path / name, pixels, names=["B10", "B8"])
        built = build(tmp_path / name, tmp_path / f"out_{expected}", tile_size=32)
        assert built.num_tiles == expected
        assert any(note.startswith("pixels that are 0 in all bands") for note in built.notes) == (expected == 1)


def with_gaps(number, bands=1):
    """Ten pixels of the first tile without data, all of the second; five of the ten are NaN."""
    pixels = noise(bands, 32, 64, "float32")
    pixels[0, 0, :5] = np.nan
    pixels[0, 1, :5] = number
    pixels[0, :, 32:] = np.nan
    return pixels


@pytest.mark.parametrize(("declared", "stored"), [(-9999, -9999.0), (-9999.9, -9999.900390625), (np.nan, LOWEST)])
def test_nan_and_nodata_of_floats_are_stored_as_one_number(tmp_path, declared, stored):
    save_raster(tmp_path / "a.tif", with_gaps(declared, bands=2), names=["height", "slope"], nodata=declared)
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32)
    assert (built.num_tiles, built.skipped, facts_of(tmp_path / "out")["nodata"]) == (1, {"no data": 1}, stored)
    schema = pq.read_schema(tmp_path / "out/tiles-00000-of-00001.parquet")
    assert facts_from_json(schema.metadata[SCHEMA_KEY]).nodata == stored
    tile = rows_of(tmp_path / "out")[0]["image"]
    assert (tile == np.float32(stored)).sum(axis=(1, 2)).tolist() == [10, 10]  # in both bands
    assert np.isfinite(tile).all()
    assert built.facts.statistics.minimum[0] >= 100
    assert built.notes[-1] == f"pixels without data, or NaN (0.98%), were stored as {stored!r}"


def test_scenes_and_partners_of_several_numbers_share_the_lowest_float(tmp_path):
    save_raster(tmp_path / "summer/a.tif", with_gaps(-9999), names=["height"], nodata=-9999)
    winter = with_gaps(-1)
    winter[:, 2, :3] = -9999  # a height like any other there
    save_raster(tmp_path / "winter/a.tif", winter, names=["height"], nodata=-1)
    built = build(tmp_path / "summer", tmp_path / "out", tile_size=32, pair_with=tmp_path / "winter")
    assert (built.num_tiles, built.facts.nodata, built.facts.statistics.minimum) == (1, LOWEST, [-9999])
    (row,) = rows_of(tmp_path / "out")
    assert [(row[column] == np.float32(LOWEST)).sum() for column in ("image", "image_pair")] == [10, 10]


def test_integer_partners_of_another_number_are_stored_with_the_tiles_own(tmp_path):
    for season, number in (("summer", 7), ("winter", 9)):
        pixels = noise(2, 32, 32)
        pixels[0, 0, :5] = number
        save_raster(tmp_path / season / "a.tif", pixels, names=["x", "y"], nodata=number)
    built = build(tmp_path / "summer", tmp_path / "out", tile_size=32, pair_with=tmp_path / "winter")
    (row,) = rows_of(tmp_path / "out")
    assert (built.facts.nodata, built.facts.dtype) == (7, "uint16")
    assert [(row[column] == 7).sum() for column in ("image", "image_pair")] == [10, 10]


def test_what_was_stored_for_no_data_is_noted_only_where_there_was_any(tmp_path):
    save_raster(tmp_path / "a.tif", noise(1, 32, 32, "float32"), names=["height"])
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32, max_cloud=1.0)
    assert (built.facts.nodata, built.notes) == (LOWEST, [])


@pytest.mark.parametrize(
    ("dtype", "number", "text"),
    [("int16", -9999, "-9999"), ("int16", -32768, "-32768"), ("float32", -9999, "-9999"), ("float32", LOWEST, LOWEST)],
)
def test_numbers_that_look_like_no_data_are_told_of_when_none_is_declared(tmp_path, dtype, number, text):
    pixels = noise(2, 32, 32, dtype)
    pixels[1, 0, :11] = number  # 1.07 % of 1,024
    save_raster(tmp_path / "a.tif", pixels, names=["x", "y"])
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32, max_cloud=1.0)
    assert built.notes == [
        f"1.1% of y is {text} and counts as data, for nothing declares it; --nodata={text} if it marks none"
    ]
    assert build(tmp_path / "a.tif", tmp_path / "told", nodata=float(number), max_cloud=1.0).facts.nodata == number
    pixels[1, 0, 10] = 100  # 0.98 %
    save_raster(tmp_path / "few.tif", pixels, names=["x", "y"])
    assert build(tmp_path / "few.tif", tmp_path / "few", tile_size=32, max_cloud=1.0).notes == []


def test_masks_and_alpha_say_where_there_is_data(tmp_path):
    shown = np.full((32, 64), 255, np.uint8)
    shown[:, 32:] = 0
    save_raster(tmp_path / "mask.tif", noise(2, 32, 64), names=["x", "y"], mask=shown)
    alpha = np.concatenate([noise(3, 32, 64, "uint8"), shown[None]])
    save_raster(tmp_path / "alpha.tif", alpha, photometric="rgb", alpha="yes")
    for name, bands in (("mask", 2), ("alpha", 3)):
        built = build(tmp_path / f"{name}.tif", tmp_path / name, tile_size=32)
        assert (built.num_tiles, built.skipped, len(built.facts.bands)) == (1, {"no data": 1}, bands)
    assert built.notes == [
        "the last band is alpha and was taken as a mask of data; --band-names red,green,blue,nir takes it as a band"
    ]
    names = ("red", "green", "blue", "nir")
    built = build(tmp_path / "alpha.tif", tmp_path / "all", tile_size=32, band_names=names)
    assert (built.num_tiles, len(built.facts.bands), built.notes) == (2, 4, [])


@pytest.fixture
def internal_masks():
    """Masks within the files, as most have them, and not beside."""
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        yield


@pytest.mark.usefixtures("internal_masks")
def test_the_masks_of_coarse_and_shifted_bands_are_kept(tmp_path):
    """B1 has pixels of 20 m, its mask hides the pixels from column 24 on: 480 m. B3 lies 5 m to the west of B2."""
    shown = np.full((32, 32), 255, np.uint8)
    shown[:, 24:] = 0
    coarse = noise(1, 32, 32)
    coarse[:, :, 24:] = 65_000  # what is hidden must not show between pixels
    save_raster(tmp_path / "coarse/x_B1.tif", coarse, metres=20, mask=shown)
    save_raster(tmp_path / "coarse/x_B2.tif", noise(1, 64, 64))
    built = build(tmp_path / "coarse", tmp_path / "out_coarse", tile_size=16)
    assert (built.num_tiles, built.skipped) == (12, {"no data": 4})
    assert built.facts.statistics.maximum[0] < 3000
    shown = np.full((32, 64), 255, np.uint8)
    shown[:16, 33:] = 0
    save_raster(tmp_path / "shifted/x_B2.tif", noise(1, 32, 64))
    save_raster(tmp_path / "shifted/x_B3.tif", noise(1, 32, 65), origin=(-5, 0), mask=np.pad(shown, ((0, 0), (0, 1))))
    built = build(tmp_path / "shifted", tmp_path / "out_shifted", tile_size=16)
    # the tile of the first row at column 32 sees the mask from its second column on, that at 48 at once
    assert (built.num_tiles, built.skipped) == (6, {"no data": 2})


@pytest.mark.usefixtures("internal_masks")
@pytest.mark.parametrize("kind", ["mask", "mask and nodata", "alpha"])
@pytest.mark.parametrize("metres", [10, 20])
def test_partners_on_other_grids_keep_their_masks(tmp_path, kind, metres):
    """The partner lies half a pixel off, and has nothing from x = 320 m on."""
    save_raster(tmp_path / "summer/a.tif", noise(3, 32, 96, "uint8"))
    first_hidden = 320 // metres + 1  # its columns begin at x = -metres / 2
    shown = np.full((100, 128), 255, np.uint8)
    shown[:, first_hidden:] = 0
    winter, where = noise(3, 100, 128, "uint8"), {"metres": metres, "origin": (-metres / 2, metres / 2)}
    winter[:, :, first_hidden:] = 250
    if kind == "alpha":
        save_raster(
            tmp_path / "winter/a.tif", np.concatenate([winter, shown[None]]), photometric="rgb", alpha="yes", **where
        )
    else:
        nodata = {"nodata": 255} if kind == "mask and nodata" else {}
        save_raster(tmp_path / "winter/a.tif", winter, mask=shown, **where, **nodata)
    built = build(tmp_path / "summer", tmp_path / "out", tile_size=32, pair_with=tmp_path / "winter", max_cloud=1.0)
    assert (built.num_tiles, built.skipped) == (1, {"partner: no data": 2})
    pair = rows_of(tmp_path / "out")[0]["image_pair"]
    assert pair.max() <= 200


@pytest.mark.usefixtures("internal_masks")
def test_the_mask_of_a_label_raster_is_kept_on_another_grid(tmp_path):
    save_raster(tmp_path / "a.tif", noise(1, 32, 64), names=["B8"])
    shown = np.full((20, 40), 255, np.uint8)
    shown[:, 18:] = 0  # columns of 20 m from x = -40 m on: nothing from x = 320 m on
    save_raster(tmp_path / "c.tif", np.ones((1, 20, 40), np.uint8), metres=20, origin=(-40, 40), mask=shown, nodata=9)
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32, label_raster=tmp_path / "c.tif")
    assert (built.num_tiles, built.skipped) == (1, {"no label there": 1})


@pytest.mark.parametrize(("dtype", "count"), [("uint8", 3), ("uint16", 2), ("int16", 1), ("float32", 2)])
def test_readers_count_the_pixels_that_the_build_counted(tmp_path, dtype, count):
    """One rule for what holds no data: in 8 bits all bands, else any."""
    pixels = noise(count, 64, 64, dtype)
    pixels[0, :3] = 7
    pixels[:, 5] = 7
    save_raster(tmp_path / "a.tif", pixels, names=["x", "y", "z"][:count], nodata=7)
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32, max_nodata=1.0)
    rows = 1 if dtype == "uint8" else 4
    assert built.facts.statistics.pixels == [64 * (64 - rows)] * count
    scaling = "uint8" if dtype == "uint8" else "percentiles"
    tiles = open_tiles(str(tmp_path / "out"), Data(scaling=scaling), count)
    assert measure_statistics(tiles, 0).statistics == built.facts.statistics


def test_a_satellites_undeclared_zeros_are_no_number_for_readers(tmp_path):
    """Half of the pixels have a dark band: to a reader, who knows one number for all bands, they would be no data."""
    pixels = noise(2, 32, 32)
    pixels[0, :16] = 0
    pixels[:, 0] = 0
    save_raster(tmp_path / "S2A_scene.tif", pixels, names=["B10", "B8"])
    built = build(tmp_path / "S2A_scene.tif", tmp_path / "out", tile_size=32)
    assert (built.facts.nodata, built.facts.statistics.pixels) == (None, [31 * 32] * 2)
    tiles = open_tiles(str(tmp_path / "out"), Data(scaling="percentiles"), 2)
    counted = measure_statistics(tiles, 0).statistics
    assert counted.pixels == [32 * 32] * 2
