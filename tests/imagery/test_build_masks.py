"""Pixels without data: nodata numbers, NaN, masks and alpha, on the scene's own grid and on others."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from support.builds import build
from support.geo_files import facts_of, noise, rows_of, save_raster

from moco_accel.recipe.data_sections import Data
from moco_accel.scenes.layouts import LOWEST_FLOAT as LOWEST
from moco_accel.sources.tile_metadata import SCHEMA_KEY, metadata_from_json
from moco_accel.tiles.statistics import measure_statistics
from moco_accel.tiles.tiles import open_tiles


def test_tiles_with_too_little_data_are_skipped(tmp_path):
    pixels = noise(2, 32, 96)
    pixels[0, :, 32:36] = 7  # an eighth of the second tile, in one band
    pixels[1, 0, 64:96] = 7  # a thirty-second of the third
    save_raster(tmp_path / "a.tif", pixels, names=["x", "y"], nodata=7)
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32)
    assert (built.num_tiles, built.skipped, built.metadata.nodata) == (2, {"no data": 1}, 7)
    assert built.metadata.statistics.nodata_share == pytest.approx(32 / 2048)
    assert built.metadata.statistics.minimum[0] >= 100
    assert build(tmp_path / "a.tif", tmp_path / "all", tile_size=32, max_nodata=0.125).num_tiles == 3
    assert build(tmp_path / "a.tif", tmp_path / "none", tile_size=32, max_nodata=0.0).num_tiles == 1
    assert build(tmp_path / "a.tif", tmp_path / "other", tile_size=32, nodata=8).num_tiles == 3


def test_in_8_bits_all_bands_must_have_the_nodata_number(tmp_path):
    """Dark water is 0 in red and has data."""
    pixels = noise(3, 32, 64, "uint8")
    pixels[0] = 0
    pixels[:, :, 32:] = 0
    save_raster(tmp_path / "a.tif", pixels, nodata=0)
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32)
    assert (built.num_tiles, built.skipped) == (1, {"no data": 1})


def test_undeclared_zeros_are_no_data_in_satellite_scenes_only(tmp_path):
    pixels = noise(2, 32, 64)
    pixels[0] = 0
    pixels[:, :, 32:] = 0
    for name, expected in (("S2A_scene.tif", 1), ("scene.tif", 2)):
        save_raster(tmp_path / name, pixels, names=["B10", "B8"])
        built = build(tmp_path / name, tmp_path / f"out_{expected}", tile_size=32)
        assert built.num_tiles == expected
        assert any(note.startswith("pixels that are 0 in all bands") for note in built.notes) == (expected == 1)


def with_gaps(number, bands=1):
    """Return two tiles: the first has five pixels of NaN and five of `number`, the second is all NaN."""
    pixels = noise(bands, 32, 64, "float32")
    pixels[0, 0, :5] = np.nan
    pixels[0, 1, :5] = number
    pixels[0, :, 32:] = np.nan
    return pixels


@pytest.mark.parametrize(("declared", "stored"), [(-9999, -9999.0), (-9999.9, -9999.900390625), (np.nan, LOWEST)])
def test_nan_and_nodata_of_float32_are_stored_as_one_number(tmp_path, declared, stored):
    save_raster(tmp_path / "a.tif", with_gaps(declared, bands=2), names=["height", "slope"], nodata=declared)
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32)
    assert (built.num_tiles, built.skipped, facts_of(tmp_path / "out")["nodata"]) == (1, {"no data": 1}, stored)
    schema = pq.read_schema(tmp_path / "out/tiles-00000-of-00001.parquet")
    assert metadata_from_json(schema.metadata[SCHEMA_KEY]).nodata == stored
    tile = rows_of(tmp_path / "out")[0]["image"]
    assert (tile == np.float32(stored)).sum(axis=(1, 2)).tolist() == [10, 10]  # in both bands
    assert np.isfinite(tile).all()
    assert built.metadata.statistics.minimum[0] >= 100
    assert built.notes[-1] == f"pixels without data or NaN (0.98%) were stored as {stored!r}"


def test_seasons_with_different_nodata_numbers_store_the_lowest_float(tmp_path):
    save_raster(tmp_path / "summer/a.tif", with_gaps(-9999), names=["height"], nodata=-9999)
    winter = with_gaps(-1)
    winter[:, 2, :3] = -9999  # an ordinary height in this scene
    save_raster(tmp_path / "winter/a.tif", winter, names=["height"], nodata=-1)
    built = build(tmp_path / "summer", tmp_path / "out", tile_size=32, pair_with=tmp_path / "winter")
    assert (built.num_tiles, built.metadata.nodata, built.metadata.statistics.minimum) == (1, LOWEST, [-9999])
    (row,) = rows_of(tmp_path / "out")
    assert [(row[column] == np.float32(LOWEST)).sum() for column in ("image", "image_pair")] == [10, 10]


def test_integer_pairs_are_stored_with_the_nodata_number_of_the_tile(tmp_path):
    for season, number in (("summer", 7), ("winter", 9)):
        pixels = noise(2, 32, 32)
        pixels[0, 0, :5] = number
        save_raster(tmp_path / season / "a.tif", pixels, names=["x", "y"], nodata=number)
    built = build(tmp_path / "summer", tmp_path / "out", tile_size=32, pair_with=tmp_path / "winter")
    (row,) = rows_of(tmp_path / "out")
    assert (built.metadata.nodata, built.metadata.dtype) == (7, "uint16")
    assert [(row[column] == 7).sum() for column in ("image", "image_pair")] == [10, 10]


def test_no_note_on_nodata_if_all_pixels_have_data(tmp_path):
    save_raster(tmp_path / "a.tif", noise(1, 32, 32, "float32"), names=["height"])
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32, max_cloud=1.0)
    assert (built.metadata.nodata, built.notes) == (LOWEST, [])


@pytest.mark.parametrize(
    ("dtype", "number", "text"),
    [("int16", -9999, "-9999"), ("int16", -32768, "-32768"), ("float32", -9999, "-9999"), ("float32", LOWEST, LOWEST)],
)
def test_values_that_look_like_undeclared_nodata_are_noted(tmp_path, dtype, number, text):
    pixels = noise(2, 32, 32, dtype)
    pixels[1, 0, :11] = number  # 1.07 % of 1,024
    save_raster(tmp_path / "a.tif", pixels, names=["x", "y"])
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32, max_cloud=1.0)
    assert built.notes == [
        f"1.1% of the pixels are {number:g}, which nothing declares as no data; if they hold none: "
        f"--nodata={text} --overwrite"
    ]
    assert (
        build(tmp_path / "a.tif", tmp_path / "declared", nodata=float(number), max_cloud=1.0).metadata.nodata == number
    )
    pixels[1, 0, 1:11] = 100  # 0.098 % are left
    save_raster(tmp_path / "few.tif", pixels, names=["x", "y"])
    assert build(tmp_path / "few.tif", tmp_path / "few", tile_size=32, max_cloud=1.0).notes == []


def test_masks_and_alpha_bands_mark_pixels_with_data(tmp_path):
    shown = np.full((32, 64), 255, np.uint8)
    shown[:, 32:] = 0
    save_raster(tmp_path / "mask.tif", noise(2, 32, 64), names=["x", "y"], mask=shown)
    alpha = np.concatenate([noise(3, 32, 64, "uint8"), shown[None]])
    save_raster(tmp_path / "alpha.tif", alpha, photometric="rgb", alpha="yes")
    for name, bands in (("mask", 2), ("alpha", 3)):
        built = build(tmp_path / f"{name}.tif", tmp_path / name, tile_size=32)
        assert (built.num_tiles, built.skipped, len(built.metadata.bands)) == (1, {"no data": 1}, bands)
    assert built.notes == [
        "the last band is alpha and was used as a data mask; --band-names red,green,blue,nir stores it as a band"
    ]
    names = ("red", "green", "blue", "nir")
    built = build(tmp_path / "alpha.tif", tmp_path / "all", tile_size=32, band_names=names)
    assert (built.num_tiles, len(built.metadata.bands), built.notes) == (2, 4, [])


@pytest.fixture
def internal_masks():
    """Store masks inside the files, as most files do, and not beside them."""
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        yield


@pytest.mark.usefixtures("internal_masks")
def test_the_masks_of_coarse_and_shifted_bands_are_kept(tmp_path):
    """B1 has pixels of 20 m, masked from column 24 (480 m) on. B3 begins 5 m to the west of B2."""
    shown = np.full((32, 32), 255, np.uint8)
    shown[:, 24:] = 0
    coarse = noise(1, 32, 32)
    coarse[:, :, 24:] = 65_000  # masked values must not enter the interpolation
    save_raster(tmp_path / "coarse/x_B1.tif", coarse, metres=20, mask=shown)
    save_raster(tmp_path / "coarse/x_B2.tif", noise(1, 64, 64))
    built = build(tmp_path / "coarse", tmp_path / "out_coarse", tile_size=16)
    assert (built.num_tiles, built.skipped) == (12, {"no data": 4})
    assert built.metadata.statistics.maximum[0] < 3000
    shown = np.full((32, 64), 255, np.uint8)
    shown[:16, 33:] = 0
    save_raster(tmp_path / "shifted/x_B2.tif", noise(1, 32, 64))
    save_raster(tmp_path / "shifted/x_B3.tif", noise(1, 32, 65), origin=(-5, 0), mask=np.pad(shown, ((0, 0), (0, 1))))
    built = build(tmp_path / "shifted", tmp_path / "out_shifted", tile_size=16)
    # in the first row, the tile at column 32 is masked from its second column on, that at 48 entirely
    assert (built.num_tiles, built.skipped) == (6, {"no data": 2})


@pytest.mark.usefixtures("internal_masks")
@pytest.mark.parametrize("kind", ["mask", "mask and nodata", "alpha"])
@pytest.mark.parametrize("metres", [10, 20])
def test_paired_scenes_on_other_grids_keep_their_masks(tmp_path, kind, metres):
    """The paired scene is shifted by half a pixel, and has no data from x = 320 m on."""
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
    shown[:, 18:] = 0  # columns of 20 m from x = -40 m on: no data from x = 320 m on
    save_raster(tmp_path / "c.tif", np.ones((1, 20, 40), np.uint8), metres=20, origin=(-40, 40), mask=shown, nodata=9)
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32, label_raster=tmp_path / "c.tif")
    assert (built.num_tiles, built.skipped) == (1, {"no label there": 1})


@pytest.mark.parametrize(("dtype", "count"), [("uint8", 3), ("uint16", 2), ("int16", 1), ("float32", 2)])
def test_the_statistics_of_a_reader_equal_those_of_the_build(tmp_path, dtype, count):
    """Both use one rule for no data: all bands in 8 bits, any band otherwise."""
    pixels = noise(count, 64, 64, dtype)
    pixels[0, :3] = 7
    pixels[:, 5] = 7
    save_raster(tmp_path / "a.tif", pixels, names=["x", "y", "z"][:count], nodata=7)
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32, max_nodata=1.0)
    rows = 1 if dtype == "uint8" else 4
    assert built.metadata.statistics.pixels == [64 * (64 - rows)] * count
    scaling = "uint8" if dtype == "uint8" else "percentiles"
    tiles = open_tiles(str(tmp_path / "out"), Data(scaling=scaling), count)
    assert measure_statistics(tiles, 0).running.statistics() == built.metadata.statistics


def test_undeclared_zeros_are_no_data_for_readers_and_dark_bands_are_data(tmp_path):
    """0 is no data if all bands hold it; a dark band's 0 becomes 1, for readers know one number for all bands."""
    pixels = noise(2, 32, 32)
    pixels[0, :16] = 0
    pixels[:, 0] = 0
    save_raster(tmp_path / "S2A_scene.tif", pixels, names=["B10", "B8"])
    built = build(tmp_path / "S2A_scene.tif", tmp_path / "out", tile_size=32)
    assert (built.metadata.nodata, built.metadata.statistics.pixels) == (0, [31 * 32] * 2)
    (row,) = rows_of(tmp_path / "out")
    assert np.array_equal(row["image"][1], pixels[1])
    assert np.unique(row["image"][0, 1:16]).tolist() == [1]
    tiles = open_tiles(str(tmp_path / "out"), Data(scaling="percentiles"), 2)
    counted = measure_statistics(tiles, 0).running.statistics()
    assert counted.pixels == [31 * 32] * 2
