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
    build(source, out, tile_size=SIDE)
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


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_alpha_changes_no_colour(tmp_path: Path, kind: str) -> None:
    """Built tiles leave an alpha that hides nothing out; in place it is the fourth band."""
    (tmp_path / "src").mkdir()
    opaque = np.full((SIDE, SIDE, 1), 255, np.uint8)
    Image.fromarray(np.concatenate([RGB, opaque], axis=2)).save(tmp_path / f"src/a.{kind}")
    stored = {"stored_bands": ["red", "green", "blue", "alpha"]} if kind == "tif" else {}
    names, tile = in_place(tmp_path / "src", bands=["red", "green", "blue"], **stored)
    assert (names, built(tmp_path / "src", tmp_path / "out")[0]) == (["red", "green", "blue"],) * 2
    assert np.array_equal(tile, RGB.transpose(2, 0, 1))
    assert np.array_equal(tile, rows_of(tmp_path / "out")[0]["image"])
    assert in_place(tmp_path / "src")[1].shape == (4, SIDE, SIDE)
