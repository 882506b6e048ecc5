"""Numbers that look like no data and are not declared are printed with their share, and what is printed works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.builds import build, run_moco_data
from support.geo_files import noise, save_raster
from support.recipes import small_recipe
from support.source_files import random_array, random_pixels, tiff, write_file

from moco_accel.recipe.data_sections import Data
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.overrides import apply_overrides
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.fill_data_fields import fill_data_fields
from moco_accel.tiles.statistics import measure_statistics
from moco_accel.tiles.tiles import open_tiles
from moco_accel.training.loader import open_training_tiles
from moco_accel.views.crops import scale_stored

LOWEST = float(np.finfo(np.float32).min)


def filled(source: Path, bands: int, *changes: str, **data: object) -> tuple[Recipe, list[str]]:
    recipe = small_recipe(encoder={"bands": bands}, data={"source": str(source), **data})
    recipe = recipe_from_dict(apply_overrides(recipe.model_dump(exclude={"planned"}), list(changes)))
    lines: list[str] = []
    resolved = fill_data_fields(recipe, open_training_tiles(recipe), lines.append)
    return resolved, [line for line in lines if "declares" in line]


def remedy(line: str) -> list[str]:
    found = re.search(r"if they hold none: ((?:data\.\w+=\S+ ?)+)", line.replace(",", " ,").replace("[/]", " "))
    assert found, line
    return found[1].split()


@pytest.mark.parametrize(
    ("dtype", "number", "shown"),
    [
        ("int16", -9999, "12.5% of the pixels are -9999, which nothing declares"),
        ("int16", -32768, "12.5% of the pixels are -32768, "),
        ("float32", -9999, "12.5% of the pixels are -9999, "),
        ("float32", float(np.finfo(np.float32).min), "12.5% of the pixels are -3.40282e+38, "),
        ("uint16", 0, "12.5% of the pixels are 0 in all bands, "),
        ("uint16", 65535, "12.5% of the pixels are 65535 in all bands, "),
        ("int16", 0, "12.5% of the pixels are 0 in all bands, "),
    ],
)
def test_numbers_that_nothing_declares(tmp_path: Path, dtype: str, number: float, shown: str) -> None:
    for index in range(4):
        tile = random_array((2, 16, 16), dtype, index) + 5
        tile[:, :2] = number
        write_file(tmp_path / f"t/{index}.tif", tiff(tile.astype(dtype)))
    before, (line,) = filled(tmp_path / "t", 2, scaling="percentiles")
    assert shown in line
    assert number in (before.stored_range[0][0], before.stored_range[1][0])
    after, lines = filled(tmp_path / "t", 2, *remedy(line), scaling="percentiles")
    assert lines == []
    low, high = after.stored_range
    assert 4 < low[0] < high[0] < 9006


def test_a_declared_number_is_not_printed(tmp_path: Path) -> None:
    tile = random_array((2, 16, 16), "int16")
    tile[:, :2] = -9999
    write_file(tmp_path / "t/0.tif", tiff(tile, nodata=-9999))
    assert filled(tmp_path / "t", 2, scaling="percentiles")[1] == []


@pytest.fixture
def black_borders(tmp_path: Path) -> Path:
    """8 RGB pictures with 12 of 32 columns black."""
    (tmp_path / "t").mkdir()
    for index, pixels in enumerate(random_pixels(8, 32)):
        pixels[:, :12] = 0
        Image.fromarray(pixels).save(tmp_path / f"t/{index}.png")
    return tmp_path / "t"


def test_black_borders_of_pictures_are_printed(black_borders: Path) -> None:
    _, (line,) = filled(black_borders, 3)
    assert "37.5% of the pixels are 0 in all bands, which nothing declares as no data" in line
    changes = remedy(line)
    assert changes == ["data.nodata=0", "data.scaling=percentiles"]
    recipe, lines = filled(black_borders, 3, *changes)
    assert lines == []
    tiles = open_training_tiles(recipe)
    pixels = scale_stored(tiles[0], recipe)
    assert torch.equal(pixels[:, :, :12], torch.tensor(recipe.data.mean)[:, None, None].expand(3, 32, 12))
    assert (recipe.data.low or [0])[0] > 0


def test_inspect_prints_black_borders_and_its_option_works(black_borders: Path) -> None:
    result = run_moco_data("inspect", black_borders)
    printed = " ".join((result.stdout + result.stderr).split())
    assert "37.5% of the pixels are 0 in all bands, which nothing declares as no data; if they hold none: " in printed
    assert "--nodata 0 here, data.nodata=0 data.scaling=percentiles in a recipe" in printed
    again = run_moco_data("inspect", black_borders, "--nodata", "0")
    printed = " ".join((again.stdout + again.stderr).split())
    assert "37.50% (pixels of 0)" in printed
    assert "nodata: 0 bands: [red, green, blue] scaling: percentiles low: [" in printed
    assert "which nothing declares" not in printed


def test_build_leaves_tiles_with_black_borders_out(black_borders: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32, 3), 9, np.uint8)).save(black_borders / "whole.png")
    run_moco_data("build", black_borders, tmp_path / "out", "--nodata", "0")
    tiles = open_training_tiles(small_recipe(data={"source": str(tmp_path / "out"), "streaming": True}))
    assert len(tiles) == 1


def test_a_few_black_pixels_are_not_printed(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    for index, pixels in enumerate(random_pixels(4, 32)):
        pixels[0, :16] = 0
        Image.fromarray(pixels).save(tmp_path / f"t/{index}.png")
    assert filled(tmp_path / "t", 3)[1] == []


FILLS = {
    "float32": (LOWEST, -LOWEST, 1e20, 9.96921e36, 1.70141e38, -3.4e38, -1e32, -9999, -99999, -9999.9, -32768, -32767),
    "int16": (-9999, -32768, -32767),
    "uint16": (0, 65535),
    "uint8": (0,),
}


@pytest.mark.parametrize(("dtype", "number"), [(dtype, number) for dtype, found in FILLS.items() for number in found])
def test_the_build_and_inspect_name_the_same_fills_and_the_option_works(
    tmp_path: Path, dtype: str, number: float
) -> None:
    pixels = noise(3, 32, 32, dtype)
    pixels[:, 0] = number
    save_raster(tmp_path / "s/a.tif", pixels)
    built = build(tmp_path / "s", tmp_path / "out", band_names=("red", "green", "blue"), max_cloud=1)
    (note,) = [note for note in built.notes if "nothing declares" in note]
    assert re.match(r"3\.1% of the pixels are \S+( in all bands)?, which nothing declares as no data; if they", note)
    in_place = measure_statistics(open_tiles(str(tmp_path / "s"), Data(), None))
    (found,) = in_place.unmarked.items()
    assert found == (float(np.dtype(dtype).type(number)), 1 / 32)
    given = float(re.search(r"--nodata=(\S+)", note)[1])
    again = build(tmp_path / "s", tmp_path / "again", band_names=("red", "green", "blue"), max_cloud=1, nodata=given)
    assert (again.metadata.nodata, again.metadata.statistics.pixels) == (given, [31 * 32] * 3)
    assert not [note for note in again.notes if "nothing declares" in note]


def test_two_units_of_reflectance_are_noted(tmp_path: Path) -> None:
    for number in range(6):
        scale = 4000 if number < 4 else 1
        pixels = np.random.default_rng(number).random((2, 32, 32), np.float32) * scale
        save_raster(tmp_path / f"s/{number}.tif", pixels, names=["B4", "B8"])
    lines = measure_statistics(open_tiles(str(tmp_path / "s"), Data(), None)).units.describe(str(tmp_path / "s"))
    assert [note for note in build(tmp_path / "s", tmp_path / "out", overwrite=True).notes if "units" in note] == lines
    assert "2 of 6 sampled tiles hold values from" in lines[0]
    assert not [note for note in build(tmp_path / "s/0.tif", tmp_path / "one").notes if "two units" in note]
