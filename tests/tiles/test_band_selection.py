"""Selection of bands by name, and errors that list stored and wanted bands."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.source_files import error_message, random_array, tiff, tiles_of, write_array_shards, write_file
from support.tile_files import SENTINEL2, metadata_of, npy, write_tiles

from moco_accel.recipe.bands import KNOWN_ORDERS
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.tile_metadata import TileMetadata
from moco_accel.tiles.tiles import open_tiles


@pytest.mark.parametrize("shape", [(13, 10, 9), (10, 9, 13)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_any_number_of_bands_first_or_last(tmp_path, shape, dtype):
    arrays = np.random.default_rng(1).integers(0, 127, (4, *shape)).astype(dtype)
    write_array_shards(arrays, tmp_path / "t")
    names = [f"B{n}" for n in range(1, 14)]
    tiles = tiles_of(tmp_path / "t", 13, bands=names, scaling="percentiles")
    expected = arrays if shape[0] == 13 else arrays.transpose(0, 3, 1, 2)
    assert tiles.dtype == tiles[0].dtype == getattr(torch, dtype)
    assert tiles.bands == names
    for index in range(4):
        assert np.array_equal(tiles[index].numpy(), expected[index])


def test_bands_are_selected_by_name_with_their_statistics(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 4000, (5, 4, 9, 9)).astype(np.uint16)
    write_array_shards(arrays, tmp_path / "t")
    metadata = metadata_of(arrays, ["B2", "B3", "B4", "B8"], sensor="sentinel2", nodata=0.0)
    (tmp_path / "t" / "tiles.json").write_text(metadata.to_json())
    tiles = tiles_of(tmp_path / "t", 2, bands=["b08", "B02"], scaling="reflectance")
    assert (tiles.bands, tiles.sensor, tiles.metadata) == (["B8", "B2"], "sentinel2", metadata)
    assert np.array_equal(tiles[3].numpy(), arrays[3][[3, 0]])
    assert tiles.statistics.mean == [arrays[:, 3].mean(), arrays[:, 0].mean()]
    assert tiles.statistics.percentiles["50"] == [metadata.statistics.percentiles["50"][band] for band in (3, 0)]
    whole = tiles_of(tmp_path / "t", 4, scaling="reflectance")
    assert whole.bands == ["B2", "B3", "B4", "B8"]
    assert whole.statistics == metadata.statistics
    same = tiles_of(tmp_path / "t", 4, bands=["B2", "B3", "B4", "B8"], scaling="reflectance")
    assert np.array_equal(same[0].numpy(), arrays[0])


def test_a_shard_copied_alone_keeps_its_band_names(tmp_path):
    write_array_shards(np.ones((2, 9, 9, 2), np.uint8), tmp_path / "t")
    path = next((tmp_path / "t").glob("*.parquet"))
    table = pq.read_table(path)
    metadata = TileMetadata(["nir", "red"], "uint8", "landsat8")
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **metadata.schema_metadata()}), path)
    for streaming in (False, True):
        tiles = tiles_of(path, 2, streaming=streaming)
        assert (tiles.bands, tiles.sensor, tiles.statistics) == (["nir", "red"], "landsat8", None)


def test_wrong_bands_are_refused_with_both_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = np.ones((2, 12, 9, 9), np.uint16)
    write_array_shards(arrays, tmp_path / "unnamed")
    level_2a = "B1, B2, B3, B4, B5, B6, B7, B8, B8A, B9, B11, B12"
    orders = (
        f"data.stored_bands=[{level_2a}] for Sentinel-2 level 2A, or "
        "data.stored_bands=[B2, B3, B4, B8, B5, B6, B7, B8A, B11, B12, B1, B9] for TreeSatAI"
    )
    assert error_message("unnamed", 12, scaling="reflectance") == (
        "data.bands=null, but the tiles in 'unnamed' have 12 bands, whose names are not stored; name all, in their "
        f"order, and data.bands selects among them: {orders}"
    )
    assert error_message("unnamed", 2, scaling="reflectance", bands=["B2", "B3"]) == (
        "data.bands=[B2, B3] selects bands of 'unnamed', whose names are not stored; name all 12, in their order: "
        f"{orders}"
    )
    works = tiles_of("unnamed", 12, scaling="reflectance", bands=level_2a.split(", "))
    assert works.bands == level_2a.split(", ")
    write_array_shards(arrays[:, :3], tmp_path / "named")
    (tmp_path / "named" / "tiles.json").write_text(TileMetadata(["B4", "B3", "B2"], "uint16").to_json())
    assert error_message("named", 2, scaling="reflectance") == (
        "encoder.bands=2 but the tiles in 'named' have 3 [B4, B3, B2]; encoder.bands=3 works, or data.bands=[B4, B3]"
    )
    assert error_message("named", 1, scaling="reflectance", bands=["B8"]) == (
        "data.bands=[B8] but 'named' has [B4, B3, B2]: B8 is not there"
    )
    assert error_message("named", 3, scaling="reflectance", bands=["B4"]) == (
        "data.bands=[B4] are 1 and encoder.bands=3; encoder.bands=1 works"
    )
    (tmp_path / "named" / "tiles.json").write_text(TileMetadata(["B4", "B3"], "uint16").to_json())
    assert "declares uint16 bands [B4, B3], but its tiles have 3 bands of uint16" in error_message("named")
    (tmp_path / "named" / "tiles.json").write_text("{}")
    assert "is damaged" in error_message("named")
    (tmp_path / "named" / "tiles.json").write_text(TileMetadata(["B4", "B3", "B2"], "uint16").to_json())
    assert error_message("*/*.parquet").startswith(
        "data.source='*/*.parquet': its shards have different bands: named/tiles-00000-of-00001.parquet has uint16 "
        "bands [B4, B3, B2], unnamed/tiles-00000-of-00001.parquet has no band names"
    )


def test_the_stored_type_needs_a_scaling(tmp_path):
    write_array_shards(np.ones((1, 9, 9, 2), np.uint16), tmp_path / "u")
    assert error_message(tmp_path / "u", 2) == (
        f"data.scaling=uint8, but the tiles in '{tmp_path}/u' are uint16; data.scaling=percentiles works, or "
        f"data.scaling=reflectance for Sentinel-2"
    )
    assert open_tiles(str(tmp_path / "u"), Data(), None).dtype == torch.uint16  # only inspected
    write_array_shards(np.ones((1, 9, 9, 2), np.float32), tmp_path / "f")
    assert error_message(tmp_path / "f", 2).endswith("are float32; data.scaling=percentiles works")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_only_8_bit_bands_without_names_are_colours(tmp_path, dtype):
    for count, names in ((3, ["red", "green", "blue"]), (1, ["grey"])):
        write_file(tmp_path / str(count) / "a.tif", tiff(random_array((count, 16, 16), dtype)))
        tiles = tiles_of(tmp_path / str(count), count, scaling="percentiles")
        assert tiles.bands == (names if dtype == "uint8" else None)
    write_file(tmp_path / "named" / "a.tif", tiff(random_array((3, 16, 16), dtype), ["B8", "B4", "B3"]))
    assert tiles_of(tmp_path / "named", 3, scaling="percentiles").bands == ["B8", "B4", "B3"]


def test_metadata_give_the_number_of_bands_in_an_npy(tmp_path):
    """Tiles of 8 x 9 pixels and 13 bands, as moco-data build writes them: the shortest axis is no band axis."""
    arrays = list(random_array((3, 13, 8, 9)))
    write_tiles(tmp_path, arrays, TileMetadata(SENTINEL2, "uint16", "sentinel2"))
    tiles = tiles_of(tmp_path, 2, bands=["B12", "B2"], scaling="reflectance")
    assert np.array_equal(tiles[2].numpy(), arrays[2][[12, 1]])


def test_unnamed_bands_are_named_by_the_recipe_and_selected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = np.random.default_rng(0).integers(0, 4000, (3, 5, 9, 9)).astype(np.uint16)
    write_array_shards(arrays, tmp_path / "t")
    names = ["B02", "b3", "B4", "B8", "elevation"]
    tiles = tiles_of("t", 2, stored_bands=names, bands=["elevation", "B2"], scaling="percentiles")
    assert (tiles.bands, tiles.declared_bands) == (["elevation", "B2"], ["B2", "B3", "B4", "B8", "elevation"])
    assert np.array_equal(tiles[2].numpy(), arrays[2][[4, 0]])
    whole = tiles_of("t", 5, stored_bands=names, scaling="percentiles")
    assert whole.bands == whole.declared_bands == ["B2", "B3", "B4", "B8", "elevation"]
    assert np.array_equal(whole[1].numpy(), arrays[1])
    assert tiles_of("t", 5, bands=names, scaling="percentiles").declared_bands is None
    assert error_message("t", 2, stored_bands=names, bands=["B2", "B5"]) == (
        "data.bands=[B2, B5] but 't' has [B2, B3, B4, B8, elevation]: B5 is not there"
    )
    assert error_message("t", 2, stored_bands=["B2", "B3"]) == (
        "data.stored_bands=[B2, B3] names 2 bands, but the tiles in 't' have 5; name all, in their order: "
        "data.stored_bands=[B1, B2, B3, B4, B5]"
    )
    assert error_message("t", 3, stored_bands=names) == (
        "encoder.bands=3 but the tiles in 't' have 5 [B2, B3, B4, B8, elevation]; encoder.bands=5 works, or "
        "data.bands=[B4, B3, B2]"
    )
    write_array_shards(arrays[:, :3], tmp_path / "three")
    assert error_message("three", 2).endswith(
        "encoder.bands=3 works, or data.bands selects after all are named: data.stored_bands=[red, green, blue] for "
        "true colour, or data.stored_bands=[nir, red, green] for infrared false colour"
    )


def test_stored_names_cannot_be_overridden(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_array_shards(np.ones((1, 9, 9, 2), np.uint16), tmp_path / "t")
    (tmp_path / "t" / "tiles.json").write_text(TileMetadata(["B4", "B3"], "uint16").to_json())
    tiles = tiles_of("t", 1, stored_bands=["b04", "B03"], bands=["B3"], scaling="percentiles")
    assert tiles[0].shape == (1, 9, 9)
    assert error_message("t", 2, stored_bands=["B3", "B4"]) == (
        "data.stored_bands=[B3, B4], but the bands of 't' have names: [B4, B3]; data.stored_bands=null works"
    )


@pytest.mark.parametrize("bands_last", [False, True])
def test_stored_bands_of_the_recipe_show_the_band_axis_of_an_npy(tmp_path, bands_last):
    arrays = random_array((2, 13, 9, 10))
    for index, array in enumerate(arrays):
        write_file(tmp_path / f"{index}.npy", npy(array.transpose(1, 2, 0) if bands_last else array))
    tiles = tiles_of(tmp_path, 2, stored_bands=SENTINEL2, bands=["B12", "B2"], scaling="reflectance")
    assert np.array_equal(tiles[1].numpy(), arrays[1][[12, 1]])


@pytest.mark.parametrize("count", [6, 7, 8, 9, 10, 11, 12, 13])
def test_every_order_that_a_message_offers_works(tmp_path, count):
    arrays = random_array((2, count, 16, 16))
    write_array_shards(arrays, tmp_path / "t")
    message = error_message(tmp_path / "t", count, scaling="percentiles")
    offers = re.findall(r"data\.stored_bands=\[([^]]*)\] for ", message)
    assert len(offers) == len(KNOWN_ORDERS[count]) == message.count(" for ")
    for names in offers:
        tiles = tiles_of(tmp_path / "t", count, stored_bands=names.split(", "), scaling="percentiles")
        assert tiles.bands == names.split(", ")
