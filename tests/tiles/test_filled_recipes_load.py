"""Whatever a run fills in from its tiles loads again: every type, odd values, any number for no data."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recipes import small_recipe
from support.source_files import tiff, write_file
from support.tile_files import metadata_of, npy, write_tiles

from moco_accel.common.errors import UserError
from moco_accel.images.headers import DamagedTile
from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.tile_metadata import TileMetadata
from moco_accel.tiles.fill_data_fields import fill_data_fields
from moco_accel.tiles.tiles import Tiles
from moco_accel.training.loader import open_training_tiles
from moco_accel.views.crops import make_crop

TYPES = ("uint8", "uint16", "int16", "float32", "float64", "int32", "uint32", "int8", "int64", "float16")
LOWEST = float(np.finfo(np.float32).min)
ODD = (np.nan, np.inf, -np.inf, LOWEST, -LOWEST, 1e-45, 0.0, -0.0, 1e20, 1e30, 1e38, 16_777_217.0, -9999.0, 1e300)
NODATA = (None, 0.0, -9999.0, -32768.0, 65535.0, LOWEST, -3.4028235e38, float("nan"), -2147483648.0, 1e-40)


def filled(folder: Path, bands: int, **data: object) -> tuple[Recipe, Tiles]:
    """Fill a recipe from the tiles in `folder`; check that it loads again, equal."""
    recipe = small_recipe(encoder={"bands": bands}, data={"source": str(folder), "scaling": "percentiles", **data})
    tiles = open_training_tiles(recipe)
    resolved = fill_data_fields(recipe, tiles, lambda line: None)
    save_recipe(resolved, folder.parent / "recipe.yaml")
    assert load_recipe(folder.parent / "recipe.yaml") == resolved
    return resolved, tiles


@st.composite
def tile_arrays(draw: st.DrawFn) -> np.ndarray:
    """Draw tiles [2, bands, 9, 10] of a type: a constant, a narrow or a wide band, and some odd values."""
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    size = (2, draw(st.sampled_from([1, 2, 5])), 9, 10)
    middle, width = draw(st.sampled_from([0, 1, 255, 9e3, 6e4, 3e9, 1e30])), draw(st.sampled_from([0, 1, 50, 1e-40]))
    values = middle + width * random.normal(size=size)
    for odd in draw(st.lists(st.sampled_from(ODD), max_size=3)):
        values[random.random(size) < 0.1] = odd
    with np.errstate(all="ignore"):
        limits = np.iinfo(dtype) if dtype.kind in "ui" else None
        return (values.clip(limits.min, limits.max) if limits else values).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(arrays=tile_arrays(), nodata=st.sampled_from(NODATA), kind=st.sampled_from(["tif", "npy", "shards"]))
def test_every_filled_recipe_loads_and_its_crops_are_pixels(
    arrays: np.ndarray, nodata: float | None, kind: str
) -> None:
    names = [f"B{number + 1}" for number in range(arrays.shape[1])]
    if kind == "shards":
        with np.errstate(over="ignore"):
            arrays = arrays.astype(np.float32)
    fits = nodata is not None and (arrays.dtype.kind == "f" or nodata in np.arange(-128, 128) or nodata == 65535)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "tiles"
        for number, array in enumerate(arrays):
            tag = {"nodata": nodata} if fits and not (number and arrays.dtype.itemsize > 2) else {}
            if kind == "tif":
                try:
                    write_file(source / f"{number}.tif", tiff(array, **tag))
                except (ValueError, OverflowError, TypeError):  # rasterio has no such type or number
                    write_file(source / f"{number}.npy", npy(array))
            elif kind == "npy":
                write_file(source / f"{number}.npy", npy(array))
        if kind == "shards":
            metadata = metadata_of(arrays, names)
            write_tiles(source, arrays, TileMetadata(names, "float32", None, nodata, metadata.statistics))
        extra = {} if kind == "shards" else {"stored_bands": names}
        try:
            resolved, tiles = filled(source, len(names), streaming=kind == "shards", **extra)
        except UserError:  # tiles without any data, for which no range fits
            return
        assert resolved.data.nodata is None or abs(resolved.data.nodata) <= -LOWEST
        for index in range(len(tiles)):
            try:
                tile = tiles[index]
            except DamagedTile:
                continue
            crop = make_crop(tile, resolved, 0, index, 0).pixels.float()
            assert torch.isfinite(crop).all()
            assert 0 <= crop.min() <= crop.max() <= 1.001  # float16 rounds


@pytest.mark.parametrize("value", [0.0, 3.0, 2_500_000.0, -1e20, -LOWEST])
def test_the_range_of_a_constant_band_resolves_in_float32(tmp_path: Path, value: float) -> None:
    write_file(tmp_path / "t/a.npy", npy(np.full((1, 9, 9), value, np.float32)))
    resolved, tiles = filled(tmp_path / "t", 1)
    low, high = (np.float32(edge) for edge in resolved.stored_range)
    assert low < high
    crop = make_crop(tiles[0], resolved, 0, 0, 0).pixels
    assert crop.unique().numel() == 1


@pytest.mark.parametrize("nodata", [LOWEST, -3.4028235e38, 3.40282347e38, 1e38, -1e31])
def test_recipes_with_any_float32_for_no_data_load(tmp_path: Path, nodata: float) -> None:
    recipe = small_recipe(data={"nodata": nodata})
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml").data.nodata == nodata


@pytest.mark.parametrize("percentile", [1e250, float("nan")])
def test_stored_statistics_that_no_tile_has_are_measured_instead(tmp_path: Path, percentile: float) -> None:
    """Other programs may write any statistics."""
    arrays = np.ones((2, 1, 9, 9), np.float32)
    metadata = metadata_of(arrays, ["elevation"])
    assert metadata.statistics is not None
    metadata.statistics.percentiles["99"][0] = percentile
    write_tiles(tmp_path / "t", arrays, metadata)
    resolved, _ = filled(tmp_path / "t", 1, streaming=True)
    assert resolved.stored_range == ([1.0], [2.0])


def test_a_value_that_cannot_be_loaded_is_refused_before_the_first_step(tmp_path: Path) -> None:
    write_file(tmp_path / "t/a.npy", npy(np.ones((1, 9, 9), np.uint16)))
    recipe = small_recipe(encoder={"bands": 1}, data={"source": str(tmp_path / "t"), "scaling": "percentiles"})
    tiles = open_training_tiles(recipe)
    tiles.nodata = 1e39  # which no source declares
    with pytest.raises(UserError, match=r"data\.nodata=1e\+39: input should be less than 34028"):
        fill_data_fields(recipe, tiles, lambda line: None)
