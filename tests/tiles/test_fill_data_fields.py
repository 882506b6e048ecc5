"""Null data fields of a recipe are measured, logged, saved, and kept by a resumed run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from support.recipes import small_recipe
from support.source_files import image_value, random_array, random_pixels, tiff, write_file
from support.tile_files import metadata_of, write_tiles

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import SENTINEL2
from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.shard_writer import write_shards
from moco_accel.sources.tile_metadata import METADATA_FILE, TileMetadata
from moco_accel.tiles.fill_data_fields import fill_data_fields, inherit_data_fields
from moco_accel.training.loader import open_training_tiles
from moco_accel.views.crops import make_crop

RAW = np.random.default_rng(0).gamma(2, 500, (40, 13, 24, 24)).astype(np.uint16)
RAW[:, 5] = 1234  # a constant band


@pytest.fixture
def tiles13(tmp_path: Path) -> Path:
    return write_tiles(tmp_path / "tiles", RAW, TileMetadata(list(SENTINEL2), "uint16", "sentinel2"))


def recipe_for(folder: Path, num_bands: int = 13, **data: object):  # type: ignore[no-untyped-def]
    return small_recipe(encoder={"bands": num_bands}, data={"source": str(folder), **data})


def fill(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Fill the recipe from its tiles; return it and the logged lines."""
    logged: list[str] = []
    return fill_data_fields(recipe, open_training_tiles(recipe), logged.append), logged


def scaled(low: np.ndarray, high: np.ndarray, bands: slice | list[int] = slice(None)) -> np.ndarray:  # type: ignore[type-arg]
    shape = (1, -1, 1, 1)
    return ((RAW[:, bands] - low.reshape(shape)) / (high - low).reshape(shape)).clip(0, 1)


def test_reflectance_mean_and_std_are_those_of_the_pixels(tiles13: Path) -> None:
    resolved, logged = fill(recipe_for(tiles13, scaling="reflectance"))
    pixels = scaled(np.zeros(13), np.full(13, 1e4))
    assert resolved.data.bands == list(SENTINEL2)
    assert (resolved.data.low, resolved.data.high) == ([0.0] * 13, [1e4] * 13)
    np.testing.assert_allclose(resolved.data.mean, pixels.mean((0, 2, 3)), rtol=5e-4)  # written with 4 digits
    std = pixels.std((0, 2, 3))
    np.testing.assert_allclose(resolved.data.std, np.where(std < 1e-9, 1, std), rtol=5e-4)
    assert logged[1:] == []
    assert logged[0].startswith("data.mean, data.std: of 40 tiles: [0.09978, 0.1002, ")


def test_percentiles_are_measured_if_they_are_not_stored(tiles13: Path) -> None:
    resolved, logged = fill(recipe_for(tiles13, scaling="percentiles"))
    expected = np.percentile(RAW.transpose(1, 0, 2, 3).reshape(13, -1), (1, 99), axis=1, method="inverted_cdf")
    np.testing.assert_array_equal(resolved.data.low, expected[0])
    # high of the constant band is low + 1
    np.testing.assert_array_equal(resolved.data.high, np.where(expected[1] > expected[0], expected[1], expected[0] + 1))
    assert logged[0].startswith("data.low, data.high: 1st and 99th percentile of 40 tiles: [")
    crop = make_crop(open_training_tiles(resolved)[0], resolved, 0, 0, 0).pixels
    assert crop.dtype == torch.float16
    assert 0 <= crop.min() < 0.1 < 0.9 < crop.max() <= 1


def test_stored_percentiles_are_used_in_the_recipes_order(tiles13: Path) -> None:
    metadata = metadata_of(RAW, list(SENTINEL2), sensor="sentinel2")
    (tiles13 / METADATA_FILE).write_text(metadata.to_json())
    resolved, logged = fill(recipe_for(tiles13, 2, bands=["B12", "b02"], scaling="percentiles"))
    first = metadata.statistics.percentiles["1"]
    assert resolved.data.low == [first[12], first[1]]
    assert resolved.data.bands == ["B12", "B2"]
    assert "of all tiles" in logged[0]
    pixels = scaled(np.array(resolved.data.low), np.array(resolved.data.high), [12, 1])
    np.testing.assert_allclose(resolved.data.std, pixels.std((0, 2, 3)), rtol=5e-4)


def test_range_that_clips_all_is_refused_and_one_that_clips_much_is_logged(tiles13: Path) -> None:
    two = {"source": str(tiles13), "bands": ["B1", "B2"], "scaling": "range"}
    above = small_recipe(encoder={"bands": 2}, data=two | {"low": [2e4, 2e4], "high": [3e4, 3e4]})
    with pytest.raises(UserError) as caught:
        fill(above)
    assert str(caught.value).startswith(
        "data.scaling=range maps values from [2e+04, 2e+04] to [3e+04, 3e+04] to pixels"
    )
    assert str(caught.value).endswith(
        "B1 100.0%, B2 100.0% of all values lie outside; data.scaling=percentiles data.low=null data.high=null works"
    )
    one = two | {"low": [0, 2e4], "high": [1e4, 3e4], "mean": [0.5, 0.5], "std": [1, 1]}  # no field is null
    above = small_recipe(encoder={"bands": 2}, data=one)
    with pytest.raises(UserError) as caught:
        fill(above)
    assert "B2 100.0% of all values lie outside; data.scaling=percentiles data.low=null data.high=null" in str(
        caught.value
    )
    assert "B1" not in str(caught.value)
    _, logged = fill(small_recipe(encoder={"bands": 2}, data=two | {"low": [0, 0], "high": [1e4, 1000]}))
    share = (RAW[:, 1] > 1000).mean()
    assert logged[0] == (
        f"[yellow]data.scaling=range clips values of B2 {share:.0%}; data.scaling=percentiles clips 2% of each[/]"
    )


def test_nodata_pixels_become_the_bands_mean(tiles13: Path) -> None:
    (tiles13 / METADATA_FILE).write_text(TileMetadata(list(SENTINEL2), "uint16", "sentinel2", 1234.0).to_json())
    chosen = {"bands": ["B1", "B6"], "scaling": "reflectance"}  # B6 is 1,234 everywhere: no pixel has data
    recipe = recipe_for(tiles13, 2, **chosen, mean=[0.3, 0.4], std=[1, 1])
    resolved, _ = fill(recipe)
    assert resolved.data.nodata == 1234
    crop = make_crop(open_training_tiles(resolved)[0], resolved, 0, 0, 0).pixels
    assert torch.equal(crop, torch.tensor([0.3, 0.4])[:, None, None].expand_as(crop).half())
    without = make_crop(open_training_tiles(recipe)[0], recipe, 0, 0, 0).pixels
    assert without[0].unique().numel() > 100


def test_nodata_value_of_the_recipe_is_not_measured(tmp_path: Path) -> None:
    """Half of each tile is 60,000, the nodata value of the recipe but not of the shards."""
    tiles = RAW.copy()
    tiles[:, :, :12] = 60_000
    write_tiles(tmp_path / "tiles", tiles, metadata_of(tiles, list(SENTINEL2), sensor="sentinel2"))
    for nodata, most in ((None, 60_000), (60_000.0, int(RAW.max()))):
        resolved, _ = fill(recipe_for(tmp_path / "tiles", scaling="percentiles", nodata=nodata))
        assert resolved.data.nodata == nodata
        assert max(resolved.data.high or []) <= most
        assert (max(resolved.data.high or []) == 60_000) == (nodata is None)
    resolved_mean = np.array(resolved.data.mean)
    valid = RAW[:, :, 12:]
    low, high = (np.array(edge)[None, :, None, None] for edge in (resolved.data.low, resolved.data.high))
    np.testing.assert_allclose(resolved_mean, ((valid - low) / (high - low)).clip(0, 1).mean((0, 2, 3)), rtol=5e-4)


@pytest.mark.parametrize("driver", ["GTiff", "bands"])
def test_nodata_tag_of_a_geotiff_is_used(tmp_path: Path, driver: str) -> None:
    array = random_array((2, 16, 16), "int16")
    array[:, :8] = -9999
    raws = [tiff(array, nodata=-9999)] if driver == "GTiff" else [tiff(band[None], nodata=-9999) for band in array]
    for tile in range(3):
        for raw, name in zip(raws, ("B1", "B2"), strict=False):
            write_file(tmp_path / (f"{tile}.tif" if driver == "GTiff" else f"{tile}/{name}.tif"), raw)
    names = {"stored_bands": ["B1", "B2"]} if driver == "GTiff" else {"bands": ["B1", "B2"]}
    resolved, logged = fill(recipe_for(tmp_path, 2, scaling="percentiles", **names))
    assert resolved.data.nodata == -9999
    assert min(resolved.data.low or []) >= 0
    assert logged[0] == "data.nodata: pixels of -9999 hold no data, according to the tiles"


def test_unused_pairs_are_logged(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "image_pair": datasets.Image()})
    pair = [
        {"image": image_value(a), "image_pair": image_value(b)}
        for a, b in zip(random_pixels(2), random_pixels(2, seed=1), strict=True)
    ]
    write_shards(pair, features, tmp_path)
    for column, lines in ((None, 1), ("image_pair", 0)):
        _, logged = fill(recipe_for(tmp_path, 3, pair_column=column))
        assert sum("paired seasons" in line for line in logged) == lines


def test_noise_that_is_large_for_a_band_is_logged(tiles13: Path) -> None:
    recipe = small_recipe(
        encoder={"bands": 2},
        data={"source": str(tiles13), "bands": ["B1", "B2"], "scaling": "range", "low": [0, 0], "high": [1e4, 1e5]},
    )
    _, logged = fill(recipe)
    assert "augment.noise_std=0.01 is more than 25% of the standard deviation of B2; data.scaling=perc" in logged[1]


def save_reflectance(folder: Path, highest: list[float], bands: int = 2, dtype: str = "float32") -> None:
    """A tile for each of `highest`, with values from 0 to that; the first row holds a huge number."""
    for number, high in enumerate(highest):
        tile = np.random.default_rng(number).random((bands, 16, 16)) * high
        tile[:, 0] = 1e20 if dtype == "float32" else 0
        write_file(folder / f"{number:03d}.tif", tiff(tile.astype(dtype)))


@pytest.mark.parametrize(
    ("highest", "bands", "dtype", "counts"),
    [
        ([1.0] * 3 + [4000.0] * 5, 2, "float32", (3, 5)),
        ([4000.0] * 19 + [1.5], 2, "float32", (1, 19)),  # 5 %
        ([1.0] * 38 + [10_000.0] * 2, 2, "float64", (38, 2)),
        ([4000.0] * 20 + [1.0], 2, "float32", None),  # less
        ([1.0] * 8, 2, "float32", None),
        ([4000.0] * 8, 2, "float32", None),
        ([1.0] * 4 + [50.0] * 4, 2, "float32", None),  # one range that grows
        ([0.0] * 4 + [4000.0] * 4, 2, "float32", None),  # black
        ([1.0] * 4 + [4000.0] * 4, 1, "float32", None),  # lowland and mountains
        ([1.0] * 4 + [4000.0] * 4, 2, "uint16", None),
    ],
)
def test_two_units_in_one_source_are_logged(
    tmp_path: Path, highest: list[float], bands: int, dtype: str, counts: tuple[int, int] | None
) -> None:
    save_reflectance(tmp_path / "t", highest, bands, dtype)
    _, logged = fill(
        recipe_for(tmp_path / "t", bands, scaling="percentiles", nodata=1e20 if dtype != "uint16" else None)
    )
    lines = [line for line in logged if "two units" in line]
    assert len(lines) == (counts is not None)
    if counts:
        (line,), (few, many) = lines, counts
        assert line.startswith(f"[yellow]data.source='{tmp_path / 't'}': {few} of {len(highest)} sampled tiles hold")
        assert f", {many} from " in line


def test_the_command_that_unifies_units_works(tmp_path: Path) -> None:
    save_reflectance(tmp_path / "t", [1.0, 4000.0])
    _, logged = fill(recipe_for(tmp_path / "t", 2, scaling="percentiles", nodata=1e20))
    (command,) = [found[0] for line in logged if (found := re.search(r"rio convert \S+ \S+ IN OUT", line))]
    source = tmp_path / "t/000.tif"
    words = shlex.split(command.replace("IN", str(source)).replace("OUT", str(tmp_path / "out.tif")))
    subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], check=True)
    (tmp_path / "out.tif").replace(source)
    _, logged = fill(recipe_for(tmp_path / "t", 2, scaling="percentiles"))
    assert not [line for line in logged if "two units" in line]


def test_8_bit_rgb_gets_imagenet_statistics_and_a_line(tiles_folder: Path) -> None:
    recipe = small_recipe(data={"source": str(tiles_folder)})
    resolved, logged = fill(recipe)
    assert resolved.normalisation == recipe.normalisation
    assert resolved.data.mean == [0.485, 0.456, 0.406]
    assert resolved.data.bands == ["red", "green", "blue"]
    assert resolved.data.image_column == "image"
    assert logged == ["data.mean, data.std: ImageNet's, as for any 8-bit tiles of three bands"]


def test_a_resumed_run_keeps_the_fields_of_the_first_one(tiles13: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tiles13, scaling="percentiles")
    resolved, _ = fill(recipe)
    save_recipe(resolved, tmp_path / "recipe.yaml")
    again = inherit_data_fields(recipe, load_recipe(tmp_path / "recipe.yaml"))
    assert again == resolved
    assert fill(again) == (resolved, [])
