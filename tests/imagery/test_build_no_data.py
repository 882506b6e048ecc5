"""Scenes that mark no data differently get one number; wide types are cast, and the cast is checked."""

import numpy as np
import pytest
import rasterio
from PIL import Image
from support.builds import build
from support.geo_files import UTM, facts_of, noise, rows_of, save_raster

from moco_accel.recipe.data_sections import Data
from moco_accel.scenes.layouts import LOWEST_FLOAT as LOWEST
from moco_accel.tiles.tiles import open_tiles

NAMES = ["B4", "B8"]


def in_place_and_built(folder, out, **options):
    """Return the only tile of a folder as training reads it, and as the build stores it."""
    tiles = open_tiles(str(folder), Data(), None)
    build(folder, out, max_nodata=1, **options)
    (row,) = rows_of(out)
    return tiles[0].numpy(), row["image"]


def with_border(number, dtype="uint16", seed=0):
    """Return two bands of 32 x 32 pixels, whose first row holds `number`."""
    pixels = noise(2, 32, 32, dtype, seed=seed)
    pixels[:, 0] = number
    return pixels


def test_scenes_with_different_nodata_numbers_store_one(tmp_path):
    one, other = with_border(0), with_border(65535, seed=1)
    other[0, 1] = 0  # data
    save_raster(tmp_path / "s/a.tif", one, names=NAMES, nodata=0)
    save_raster(tmp_path / "s/b.tif", other, names=NAMES, nodata=65535)
    built = build(tmp_path / "s", tmp_path / "out")
    tiles = [row["image"] for row in rows_of(tmp_path / "out")]
    assert built.metadata.nodata == 0
    assert [(tile == 0).sum() for tile in tiles] == [64, 64]
    assert np.unique(tiles[1][0, 1]).tolist() == [1]
    assert np.array_equal(tiles[1][1, 1:], other[1, 1:])
    assert built.metadata.statistics.pixels == [2 * 31 * 32] * 2
    assert built.notes[-1] == (
        "no data is not one number in all scenes: 0 in 1 (a.tif), 65535 in 1 (b.tif); it is stored as 0 in all tiles, "
        "and pixels with data of that value are moved by one"
    )


def test_the_most_frequent_number_is_stored_and_its_values_move_down_from_the_maximum(tmp_path):
    for name, number in (("a", 65535), ("b", 65535), ("c", 7)):
        pixels = with_border(number)
        pixels[0, 1] = 65535
        save_raster(tmp_path / f"s/{name}.tif", pixels, names=NAMES, nodata=number)
    built = build(tmp_path / "s", tmp_path / "out")
    tiles = [row["image"] for row in rows_of(tmp_path / "out")]
    assert built.metadata.nodata == 65535
    assert [np.unique(tile[:, 1]).max() for tile in tiles] == [65535, 65535, 65534]


@pytest.mark.parametrize(("dtype", "number"), [("int16", -9999), ("float32", -9999), ("uint16", 0)])
def test_a_scene_that_declares_no_number_is_read_as_the_others(tmp_path, dtype, number):
    for name in "abc":
        tag = {} if name == "a" else {"nodata": number}
        save_raster(tmp_path / f"s/{name}.tif", with_border(number, dtype), names=NAMES, **tag)
    built = build(tmp_path / "s", tmp_path / "out")
    assert (built.metadata.nodata, built.metadata.statistics.pixels) == (number, [3 * 31 * 32] * 2)
    assert any(
        note == f"1 of 3 scenes declare no number for no data, e.g. a.tif; {number:g}, which others declare, counts as "
        "no data in them, too"
        for note in built.notes
    )


@pytest.mark.parametrize("number", [np.nan, -np.inf, np.float32(LOWEST), np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_number_for_no_data_in_floats_is_stored_as_one(tmp_path, dtype, number):
    """A float64 of -3.4028234663852886e38 is the lowest float32."""
    save_raster(tmp_path / "a.tif", with_border(number, dtype), names=NAMES, nodata=float(number))
    built = build(tmp_path / "a.tif", tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert (built.metadata.dtype, built.metadata.nodata, row["image"].dtype) == ("float32", LOWEST, np.float32)
    assert np.unique(row["image"][:, 0]).tolist() == [LOWEST]
    assert row["image"][:, 1:].min() >= 100


def test_nodata_of_the_lowest_float64_is_no_data(tmp_path):
    lowest = float(np.finfo(np.float64).min)
    save_raster(tmp_path / "a.tif", with_border(lowest, "float64"), names=NAMES, nodata=lowest)
    assert build(tmp_path / "a.tif", tmp_path / "out").metadata.statistics.pixels == [31 * 32] * 2


@pytest.mark.parametrize(
    ("dtype", "low", "high", "cast"),
    [
        ("int32", 0, 60_000, "uint16"),
        ("int32", -300, 30_000, "int16"),
        ("int32", -300, 60_000, "float32"),
        ("uint32", 0, 5_000, "uint16"),
        ("uint32", 0, 100_000, "float32"),
        ("int64", 0, 5_000, "uint16"),
        ("int8", -100, 100, "int16"),
    ],
)
def test_wide_whole_numbers_become_the_type_that_holds_them(tmp_path, dtype, low, high, cast):
    pixels = np.random.default_rng(0).integers(low, high, (2, 32, 32)).astype(dtype)
    pixels[:, 0, :2] = low, high
    save_raster(tmp_path / "a.tif", pixels, names=NAMES)
    built = build(tmp_path / "a.tif", tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["image"].dtype == built.metadata.dtype == cast
    assert np.array_equal(row["image"], pixels)
    assert built.notes[0].startswith(f"cast from {dtype}: 1 scene, e.g. a.tif, to {cast}; windows with values that")


def test_scenes_of_one_wide_type_get_one_type_of_tiles(tmp_path):
    for name, low in (("a", 0), ("b", -50)):
        pixels = np.random.default_rng(0).integers(low, 5000, (2, 32, 32)).astype("int32")
        save_raster(tmp_path / f"s/{name}.tif", pixels, names=NAMES)
    built = build(tmp_path / "s", tmp_path / "out")
    assert (built.metadata.dtype, built.num_tiles) == ("int16", 2)


def test_windows_with_values_that_do_not_fit_are_skipped(tmp_path):
    """The value lies between the nine sampled windows."""
    pixels = np.random.default_rng(0).integers(0, 5000, (2, 1024, 1024)).astype("int32")
    pixels[0, 100, 100] = 70_000
    save_raster(tmp_path / "a.tif", pixels, names=NAMES)
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=128)
    assert (built.num_tiles, built.skipped) == (63, {"values that uint16 cannot hold": 1})


def test_nodata_of_a_wide_type_becomes_a_number_that_tiles_hold(tmp_path):
    pixels = with_border(-2147483648, "int32")
    pixels[0, 1] = 0  # data
    save_raster(tmp_path / "a.tif", pixels, names=NAMES, nodata=-2147483648)
    built = build(tmp_path / "a.tif", tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert (built.metadata.dtype, built.metadata.nodata) == ("uint16", 0)
    assert np.unique(row["image"][0, :2], axis=1)[:, 0].tolist() == [0, 1]


def test_pixels_that_a_mask_hides_get_a_number(tmp_path):
    shown = np.full((32, 32), 255, np.uint8)
    shown[0] = 0
    save_raster(tmp_path / "a.tif", noise(2, 32, 32), names=NAMES, mask=shown)
    built = build(tmp_path / "a.tif", tmp_path / "out")
    assert (built.metadata.nodata, built.metadata.statistics.pixels) == (0, [31 * 32] * 2)
    assert not rows_of(tmp_path / "out")[0]["image"][:, 0].any()


@pytest.mark.parametrize("crs", [UTM, None])
@pytest.mark.parametrize("names", [["red", "green", "blue"], ["red", "green", "blue", "nir"], ["grey"]])
def test_black_of_8_bits_is_no_data_where_all_bands_are_0(tmp_path, names, crs):
    pixels = np.random.default_rng(0).integers(0, 256, (len(names), 32, 32)).astype(np.uint8)
    pixels[:, :3] = 0
    save_raster(tmp_path / "a.tif", pixels, crs, nodata=0)
    built = build(tmp_path / "a.tif", tmp_path / "out", band_names=tuple(names))
    (row,) = rows_of(tmp_path / "out")
    assert np.array_equal(row["image"], pixels)
    empty = int((pixels == 0).all(axis=0).sum())
    assert empty >= 96
    assert (built.metadata.nodata, built.metadata.statistics.pixels) == (0, [32 * 32 - empty] * len(names))


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_what_a_mask_hides_in_8_bits_is_0_in_place_and_built(tmp_path, bands, compress):
    pixels = noise(bands, 32, 32, "uint8")
    pixels[:, :8] = 77
    shown = np.full((32, 32), 255, np.uint8)
    shown[:8] = 0
    names = ["red", "green", "blue", "nir"][:bands]
    for nodata, inside in ((None, True), (0, True), (255, True), (None, False)):
        folder = tmp_path / f"{nodata} {inside}"
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside):
            save_raster(folder / "s/a.tif", pixels, mask=shown, nodata=nodata, names=names, compress=compress)
        assert (folder / "s/a.tif.msk").exists() != inside
        if inside:
            found = in_place_and_built(folder / "s", folder / "out")
        else:  # in place, files beside are refused
            build(folder / "s", folder / "out", max_nodata=1)
            found = [row["image"] for row in rows_of(folder / "out")]
        for tile in found:
            assert not tile[:, :8].any()
            assert np.array_equal(tile[:, 8:], pixels[:, 8:])
        assert facts_of(folder / "out")["statistics"]["pixels"] == [24 * 32] * bands


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_mask_beside_a_picture_is_used(tmp_path, suffix):
    pixels = np.full((32, 32, 3), 77, np.uint8)
    (tmp_path / "s").mkdir()
    Image.fromarray(pixels).save(tmp_path / f"s/a.{suffix}")
    shown = np.full((1, 32, 32), 255, np.uint8)
    shown[:, :8] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        save_raster(tmp_path / "masked.tif", shown, None, mask=shown[0])
    (tmp_path / "masked.tif.msk").rename(tmp_path / f"s/a.{suffix}.msk")
    build(tmp_path / "s", tmp_path / "out", max_nodata=1)
    (row,) = rows_of(tmp_path / "out")
    assert not row["image"][:, :8].any()
    assert np.unique(row["image"][:, 8:]).tolist() == [77]


def test_alpha_beside_a_number_for_no_data_hides_pixels(tmp_path):
    """GDAL forgets the alpha then."""
    pixels = noise(4, 32, 32, "uint8")
    pixels[3] = 255
    pixels[3, :8] = 0
    save_raster(tmp_path / "s/a.tif", pixels, photometric="rgb", alpha="yes", nodata=0)
    for tile in in_place_and_built(tmp_path / "s", tmp_path / "out"):
        assert not tile[:, :8].any()
        assert np.array_equal(tile[:, 8:], pixels[:3, 8:])
