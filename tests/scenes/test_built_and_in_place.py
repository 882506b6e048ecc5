"""A picture gives the same tile whether `moco-data build` stores it or training reads it in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.builds import build
from support.geo_files import UTM, facts_of, rows_of, save_raster

from moco_accel.common.errors import UserError
from moco_accel.recipe.data_sections import Data
from moco_accel.tiles.tiles import open_tiles

SIDE = 32
RGB = (np.add.outer(np.arange(SIDE) * 3, np.arange(SIDE) * 2)[:, :, None] + [0, 20, 40]).astype(np.uint8)
GREY = RGB[:, :, 0]
COLOURS = np.array([(value, 255 - value, value * 7 % 256) for value in range(256)], np.uint8)


def in_place(source: Path, **data: Any) -> tuple[list[str] | None, np.ndarray]:
    """Band names and the only tile."""
    tiles = open_tiles(str(source), Data(**data), None)
    (tile,) = [tiles[index].numpy() for index in range(len(tiles))]
    return tiles.bands, tile


def built(source: Path, out: Path) -> tuple[list[str], np.ndarray]:
    """Band names and the only tile, read from the shard without our own readers."""
    build(source, out, tile_size=SIDE, max_nodata=1)
    (row,) = rows_of(out)
    return facts_of(out)["bands"], row["image"]


def save_palette_png(path: Path) -> np.ndarray:
    picture = Image.fromarray(RGB).quantize(16)
    picture.save(path)
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)


def save_palette_tiff(path: Path, **options: Any) -> np.ndarray:
    table = {value: (*map(int, colour), 255) for value, colour in enumerate(COLOURS)}
    save_raster(path, GREY[None], None, photometric="palette", colour_table=table, **options)
    return COLOURS[GREY].transpose(2, 0, 1)


def save_white_is_zero(path: Path, crs: str | None = None, **options: Any) -> np.ndarray:
    save_raster(path, GREY[None], crs, photometric="miniswhite", **options)
    return 255 - GREY[None]


@pytest.mark.parametrize(
    "options", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}, {"BIGTIFF": "YES"}]
)
def test_a_colour_table_becomes_rgb(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "src").mkdir()
    colours = save_palette_tiff(tmp_path / "src/a.tif", **options)
    for names, tile in (in_place(tmp_path / "src"), built(tmp_path / "src", tmp_path / "out")):
        assert names == ["red", "green", "blue"]
        assert np.array_equal(tile, colours)


def test_a_palette_png_becomes_rgb(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    colours = save_palette_png(tmp_path / "src/a.png")
    for names, tile in (in_place(tmp_path / "src"), built(tmp_path / "src", tmp_path / "out")):
        assert names == ["red", "green", "blue"]
        assert np.array_equal(tile, colours)


@pytest.mark.parametrize(
    "save",
    [
        save_white_is_zero,
        lambda path: save_white_is_zero(path, UTM),
        lambda path: save_white_is_zero(path, UTM, compress="lzw", tiled=True, blockxsize=16, blockysize=16),
        lambda path: save_white_is_zero(path, BIGTIFF="YES"),
    ],
    ids=["picture", "on Earth", "compressed", "BigTIFF"],
)
def test_white_is_zero_is_inverted(tmp_path: Path, save: Callable[[Path], np.ndarray]) -> None:
    (tmp_path / "src").mkdir()
    bright = save(tmp_path / "src/a.tif")
    for names, tile in (in_place(tmp_path / "src"), built(tmp_path / "src", tmp_path / "out")):
        assert names == ["grey"]
        assert np.array_equal(tile, bright)


def test_white_is_zero_as_pillow_writes_it(tmp_path: Path) -> None:
    """Without GDAL's metadata, GDAL itself gives such a file a colour table."""
    Image.fromarray(GREY).save(tmp_path / "a.tif", tiffinfo={262: 0, 33550: (10.0, 10.0, 0.0)})
    with Image.open(tmp_path / "a.tif") as picture:
        expected = np.asarray(picture)[None]
    for _, tile in (in_place(tmp_path / "a.tif"), built(tmp_path / "a.tif", tmp_path / "out")):
        assert np.array_equal(tile, expected)


def test_nodata_of_white_is_zero_is_inverted_with_the_pixels(tmp_path: Path) -> None:
    pixels = np.full((1, SIDE, SIDE), 55, np.uint8)
    pixels[:, :, :4] = 200
    save_raster(tmp_path / "src/a.tif", pixels, photometric="miniswhite", nodata=200)
    result = build(tmp_path / "src", tmp_path / "out", tile_size=SIDE, max_nodata=1)
    assert result.metadata.nodata == 55
    (row,) = rows_of(tmp_path / "out")
    assert np.unique(row["image"][0, :, :4]).tolist() == [55]
    assert np.unique(row["image"][0, :, 4:]).tolist() == [200]
    statistics = facts_of(tmp_path / "out")["statistics"]
    assert (statistics["mean"], statistics["pixels"]) == ([200], [SIDE * (SIDE - 4)])


def test_hidden_files_and_folders_are_no_imagery(tmp_path: Path) -> None:
    """macOS writes `._a.tif` beside `a.tif` on other disks."""
    (tmp_path / "src/.thumbnails").mkdir(parents=True)
    Image.fromarray(RGB).save(tmp_path / "src/a.tif")
    Image.fromarray(RGB).save(tmp_path / "src/.b.tif")
    Image.fromarray(RGB).save(tmp_path / "src/.thumbnails/c.png")
    (tmp_path / "src/._a.tif").write_bytes(b"\0\5\26\7" + bytes(100))
    for _, tile in (in_place(tmp_path / "src"), built(tmp_path / "src", tmp_path / "out")):
        assert np.array_equal(tile, RGB.transpose(2, 0, 1))
    assert build(tmp_path / "src", tmp_path / "again", tile_size=SIDE).left_out == []
    (tmp_path / "src/a.tif").unlink()
    with pytest.raises(UserError, match="holds no images"):
        build(tmp_path / "src", tmp_path / "none")


BITS = (GREY > 60).astype(np.uint8)
ALPHA = np.full((SIDE, SIDE), 255, np.uint8)
ALPHA[:5] = 0
ALPHA[5, :] = 100  # half transparent: the colour counts
HIDDEN = np.where(ALPHA[None] > 0, RGB.transpose(2, 0, 1), 0)
HIDDEN_GREY = np.where(ALPHA > 0, GREY, 0)[None]
PALETTE = Image.fromarray(RGB).quantize(16)
PALETTE_COLOURS = np.asarray(PALETTE.convert("RGB")).transpose(2, 0, 1)
SIXTEEN = GREY[None].astype(np.uint16) * 200
READ_ALIKE: dict[str, tuple[str, Callable[[Path], Any], np.ndarray]] = {
    "1-bit PNG": ("png", lambda path: Image.fromarray(BITS * 255).convert("1").save(path), BITS[None] * 255),
    "1-bit TIFF": ("tif", lambda path: Image.fromarray(BITS * 255).convert("1").save(path), BITS[None] * 255),
    "1-bit white-is-zero TIFF": (
        "tif",
        lambda path: save_raster(path, BITS[None], UTM, nbits=1, photometric="miniswhite"),
        255 - BITS[None] * 255,
    ),
    "1-bit GeoTIFF": ("tif", lambda path: save_raster(path, BITS[None], UTM, nbits=1), BITS[None] * 255),
    "palette PNG": ("png", PALETTE.save, PALETTE_COLOURS),
    "palette PNG with a transparent entry": (
        "png",
        lambda path: PALETTE.save(path, transparency=3),
        np.where(np.asarray(PALETTE) == 3, 0, PALETTE_COLOURS),
    ),
    "palette TIFF": ("tif", PALETTE.save, PALETTE_COLOURS),
    "16-bit white-is-zero": (
        "tif", lambda path: save_raster(path, SIXTEEN, UTM, photometric="miniswhite", names=["pan"]), 65535 - SIXTEEN
    ),
    "grey and opaque alpha": ("png", lambda path: grey_alpha(ALPHA | 255).save(path), GREY[None]),
    "grey and alpha": ("png", lambda path: grey_alpha(ALPHA).save(path), HIDDEN_GREY),
    "grey with a transparent value": (
        "png", lambda path: Image.fromarray(GREY).save(path, transparency=30), np.where(GREY == 30, 0, GREY)[None]
    ),
    "RGBA PNG, opaque": ("png", lambda path: rgba(ALPHA | 255).save(path), RGB.transpose(2, 0, 1)),
    "RGBA PNG": ("png", lambda path: rgba(ALPHA).save(path), HIDDEN),
    "RGBA TIFF, opaque": ("tif", lambda path: rgba(ALPHA | 255).save(path), RGB.transpose(2, 0, 1)),
    "CMYK JPEG": ("jpg", lambda path: Image.fromarray(RGB).convert("CMYK").save(path, quality=100), RGB[:0]),
}  # fmt: skip


def grey_alpha(alpha: np.ndarray) -> Image.Image:
    return Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])


def rgba(alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([RGB, alpha]))


@pytest.mark.parametrize("what", READ_ALIKE)
def test_pictures_are_read_alike(tmp_path: Path, what: str) -> None:
    suffix, save, expected = READ_ALIKE[what]
    (tmp_path / "src").mkdir()
    save(tmp_path / f"src/a.{suffix}")
    if not expected.size:  # as Pillow converts it
        with Image.open(tmp_path / f"src/a.{suffix}") as image:
            expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    for _, tile in (in_place(tmp_path / "src"), built(tmp_path / "src", tmp_path / "out")):
        assert tile.shape == expected.shape
        assert np.array_equal(tile, expected)


def test_transparent_pixels_of_a_tiff_hold_no_data(tmp_path: Path) -> None:
    """Built tiles keep the colour under a transparent alpha, and do not count it."""
    (tmp_path / "src").mkdir()
    rgba(ALPHA).save(tmp_path / "src/a.tif")
    names, tile = in_place(tmp_path / "src")
    assert names == ["red", "green", "blue"]
    assert np.array_equal(tile, HIDDEN)
    build(tmp_path / "src", tmp_path / "out", tile_size=SIDE, max_nodata=1)
    (row,) = rows_of(tmp_path / "out")
    assert np.array_equal(row["image"][:, 5:], HIDDEN[:, 5:])
    assert facts_of(tmp_path / "out")["statistics"]["pixels"] == [SIDE * (SIDE - 5)] * 3


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_an_alpha_band_is_kept_if_its_name_is_given(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line about the alpha band that is left out says how."""
    (tmp_path / "src").mkdir()
    rgba(ALPHA).save(tmp_path / f"src/a.{kind}")
    assert in_place(tmp_path / "src")[1].shape == (3, SIDE, SIDE)
    printed = capfd.readouterr().err
    assert "hides 15.62% of their pixels, which hold no data" in printed
    field = "bands" if kind == "png" else "stored_bands"
    assert f"; data.{field}=[red, green, blue, alpha] encoder.bands=4 keeps it" in printed
    names, tile = in_place(tmp_path / "src", **{field: ["red", "green", "blue", "alpha"]})
    assert names == ["red", "green", "blue", "alpha"]
    assert np.array_equal(tile, np.dstack([RGB, ALPHA]).transpose(2, 0, 1))


def test_near_infrared_that_gdal_calls_alpha_is_a_band(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE), dtype=np.uint8)
    for number in range(3):
        save_raster(tmp_path / f"src/{number}.tif", pixels, UTM)
    tiles = open_tiles(str(tmp_path / "src"), Data(), None)
    assert tiles[0].shape == (4, SIDE, SIDE)
    named = open_tiles(str(tmp_path / "src"), Data(stored_bands=["red", "green", "blue", "nir"]), 4)
    assert np.array_equal(named[2].numpy(), pixels)


LANDSAT = "LC08_L2SP_014034_20200101_20200113_02_T1"
BAND_FILES: dict[str, tuple[list[str], list[str]]] = {  # files in a folder, and its bands in the order of tiles
    "polarisations": (["x_VV.tif", "x_VH.tif"], ["vv", "vh"]),
    "Sentinel-1": (["s1a-iw-grd-vv-2020-01-001.tiff", "s1a-iw-grd-vh-2020-01-002.tiff"], ["vv", "vh"]),
    "words": (["x_red.tif", "x_nir.tif", "x_green.tif"], ["green", "red", "nir"]),
    "words of STAC": (["blue.tif", "rededge1.tif", "swir16.tif"], ["blue", "rededge1", "swir16"]),
    "Landsat": ([f"{LANDSAT}_{name}.TIF" for name in ("SR_B4", "SR_B5", "ST_B10")], ["B4", "B5", "B10"]),
    "Landsat of ESPA": (["LT05_sr_band3.tif", "LT05_sr_band4.tif"], ["B3", "B4"]),
    "numbers": (["0_B8A_20m.tif", "0_B11_20m.tif", "0_B02_20m.tif"], ["B2", "B8A", "B11"]),
    "numbers and words": (["x.B2.tif", "x.thermal.tif", "x.VV.tif"], ["vv", "B2", "thermal"]),
    "resolutions": (["g/R10m/x_B02_10m.tif", "g/R20m/x_B8A_20m.tif"], ["B2", "B8A"]),
}


@pytest.mark.parametrize("what", BAND_FILES)
def test_band_files_make_the_same_tile(tmp_path: Path, what: str) -> None:
    names, bands = BAND_FILES[what]
    pixels = [np.random.default_rng(n).integers(1, 9000, (1, SIDE, SIDE), dtype=np.uint16) for n in range(len(names))]
    for name, array in zip(names, pixels, strict=True):
        save_raster(tmp_path / "src" / name, array)
    wanted = sorted(array.tobytes() for array in pixels)
    for found, tile in (
        in_place(tmp_path / "src", bands=bands, scaling="percentiles"),
        built(tmp_path / "src", tmp_path / "out"),
    ):
        assert (found, tile.shape) == (bands, (len(bands), SIDE, SIDE))
        assert sorted(band.tobytes() for band in tile) == wanted
    assert np.array_equal(tile, in_place(tmp_path / "src", bands=bands, scaling="percentiles")[1])


@pytest.mark.parametrize("names", [("a_red", "a_green"), ("a_B1", "a_B2"), ("a_nir", "b_nir")])
def test_pictures_named_as_bands_are_tiles_of_their_own(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        save_raster(tmp_path / f"src/{name}.tif", RGB.transpose(2, 0, 1))
    tiles = open_tiles(str(tmp_path / "src"), Data(), None)
    build(tmp_path / "src", tmp_path / "out", tile_size=SIDE, max_nodata=1)
    assert (len(tiles), tiles.bands) == (2, facts_of(tmp_path / "out")["bands"]) == (2, ["red", "green", "blue"])
    for row in rows_of(tmp_path / "out"):
        assert np.array_equal(row["image"], tiles[0].numpy())


def test_quality_files_beside_bands_are_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("x_B4", "x_B8", "x_QA_PIXEL")):
        pixels = np.random.default_rng(number).integers(1, 9000, (1, SIDE, SIDE), dtype=np.uint16)
        save_raster(tmp_path / f"src/{name}.tif", pixels)
    names, tile = in_place(tmp_path / "src", bands=["B4", "B8"], scaling="percentiles")
    assert "x_QA_PIXEL.tif" in capfd.readouterr().err
    assert (names, tile.tolist()) == (["B4", "B8"], built(tmp_path / "src", tmp_path / "out")[1].tolist())
