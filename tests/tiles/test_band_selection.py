"""Bands by name: those stored, those asked for, and errors that name both."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.source_files import SENTINEL2, array_shards, draw, message, npy, put, tiff, tiles_of
from support.tile_files import write_tiles

from moco_accel.recipe.data_sections import Data
from moco_accel.sources.tile_facts import TileFacts
from moco_accel.tiles.band_counter import BandCounter
from moco_accel.tiles.tiles import open_tiles


def facts_of(arrays, bands, **kwargs):
    counter = BandCounter(len(bands), arrays.dtype)
    for array in arrays:
        counter.add(array)
    return TileFacts(bands, str(arrays.dtype), statistics=counter.statistics(), **kwargs)


@pytest.mark.parametrize("shape", [(13, 10, 9), (10, 9, 13)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_any_number_of_bands_first_or_last(tmp_path, shape, dtype):
    arrays = np.random.default_rng(1).integers(0, 127, (4, *shape)).astype(dtype)
    array_shards(arrays, tmp_path / "t")
    names = [f"B{n}" for n in range(1, 14)]
    tiles = tiles_of(tmp_path / "t", 13, bands=names, scaling="percentiles")
    expected = arrays if shape[0] == 13 else arrays.transpose(0, 3, 1, 2)
    assert tiles.dtype == tiles[0].dtype == getattr(torch, dtype)
    assert tiles.bands == names
    for index in range(4):
        assert np.array_equal(tiles[index].numpy(), expected[index])


def test_bands_are_chosen_by_name_with_their_statistics(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 4000, (5, 4, 9, 9)).astype(np.uint16)
    array_shards(arrays, tmp_path / "t")
    facts = facts_of(arrays, ["B2", "B3", "B4", "B8"], sensor="sentinel2", nodata=0.0)
    (tmp_path / "t" / "tiles.json").write_text(facts.to_json())
    tiles = tiles_of(tmp_path / "t", 2, bands=["b08", "B02"], scaling="reflectance")
    assert (tiles.bands, tiles.sensor, tiles.facts) == (["B8", "B2"], "sentinel2", facts)
    assert np.array_equal(tiles[3].numpy(), arrays[3][[3, 0]])
    assert tiles.statistics.mean == [arrays[:, 3].mean(), arrays[:, 0].mean()]
    assert tiles.statistics.percentiles["50"] == [facts.statistics.percentiles["50"][band] for band in (3, 0)]
    whole = tiles_of(tmp_path / "t", 4, scaling="reflectance")
    assert whole.bands == ["B2", "B3", "B4", "B8"]
    assert whole.statistics == facts.statistics
    same = tiles_of(tmp_path / "t", 4, bands=["B2", "B3", "B4", "B8"], scaling="reflectance")
    assert np.array_equal(same[0].numpy(), arrays[0])


def test_a_shard_copied_alone_still_knows_its_bands(tmp_path):
    array_shards(np.ones((2, 9, 9, 2), np.uint8), tmp_path / "t")
    path = next((tmp_path / "t").glob("*.parquet"))
    table = pq.read_table(path)
    facts = TileFacts(["nir", "red"], "uint8", "landsat8")
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **facts.schema_metadata()}), path)
    for streaming in (False, True):
        tiles = tiles_of(path, 2, streaming=streaming)
        assert (tiles.bands, tiles.sensor, tiles.statistics) == (["nir", "red"], "landsat8", None)


def test_bands_that_do_not_fit_name_both_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = np.ones((2, 12, 9, 9), np.uint16)
    array_shards(arrays, tmp_path / "unnamed")
    level_2a = "B1, B2, B3, B4, B5, B6, B7, B8, B8A, B9, B11, B12"
    assert message("unnamed", 12, scaling="reflectance") == (
        "data.bands=null, but the tiles in 'unnamed' have 12 bands, whose names are not stored; name all, in their "
        f"order, and data.bands chooses among them: data.stored_bands=[{level_2a}] if they are Sentinel-2's"
    )
    assert message("unnamed", 2, scaling="reflectance", bands=["B2", "B3"]) == (
        "data.bands=[B2, B3] chooses among bands of 'unnamed' whose names are not stored; name all 12, in their order: "
        f"data.stored_bands=[{level_2a}] if they are Sentinel-2's"
    )
    works = tiles_of("unnamed", 12, scaling="reflectance", bands=level_2a.split(", "))
    assert works.bands == level_2a.split(", ")
    array_shards(arrays[:, :3], tmp_path / "named")
    (tmp_path / "named" / "tiles.json").write_text(TileFacts(["B4", "B3", "B2"], "uint16").to_json())
    assert message("named", 2, scaling="reflectance") == (
        "encoder.bands=2 but the tiles in 'named' have 3 [B4, B3, B2]; encoder.bands=3 works, or data.bands=[B4, B3]"
    )
    assert message("named", 1, scaling="reflectance", bands=["B8"]) == (
        "data.bands=[B8] but 'named' has [B4, B3, B2]: B8 is not there"
    )
    assert message("named", 3, scaling="reflectance", bands=["B4"]) == (
        "data.bands=[B4] are 1 and encoder.bands=3; encoder.bands=1 works"
    )
    (tmp_path / "named" / "tiles.json").write_text(TileFacts(["B4", "B3"], "uint16").to_json())
    assert "is said to hold uint16 bands [B4, B3], but its tiles are 3 bands of uint16" in message("named")
    (tmp_path / "named" / "tiles.json").write_text("{}")
    assert "is damaged" in message("named")
    (tmp_path / "named" / "tiles.json").write_text(TileFacts(["B4", "B3", "B2"], "uint16").to_json())
    assert message("*/*.parquet").startswith(
        "data.source='*/*.parquet': its shards do not go together: named/tiles-00000-of-00001.parquet has uint16 bands "
        "[B4, B3, B2], unnamed/tiles-00000-of-00001.parquet has no names of bands"
    )


def test_the_stored_type_wants_a_scaling(tmp_path):
    array_shards(np.ones((1, 9, 9, 2), np.uint16), tmp_path / "u")
    assert message(tmp_path / "u", 2) == (
        f"data.scaling=uint8, but the tiles in '{tmp_path}/u' are uint16; data.scaling=percentiles works, or "
        f"data.scaling=reflectance for Sentinel-2"
    )
    assert open_tiles(str(tmp_path / "u"), Data(), None).dtype == torch.uint16  # only looked at
    array_shards(np.ones((1, 9, 9, 2), np.float32), tmp_path / "f")
    assert message(tmp_path / "f", 2).endswith("are float32; data.scaling=percentiles works")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_only_eight_bits_are_colours_without_a_name(tmp_path, dtype):
    for count, names in ((3, ["red", "green", "blue"]), (1, ["grey"])):
        put(tmp_path / str(count) / "a.tif", tiff(draw((count, 16, 16), dtype)))
        tiles = tiles_of(tmp_path / str(count), count, scaling="percentiles")
        assert tiles.bands == (names if dtype == "uint8" else None)
    put(tmp_path / "named" / "a.tif", tiff(draw((3, 16, 16), dtype), ["B8", "B4", "B3"]))
    assert tiles_of(tmp_path / "named", 3, scaling="percentiles").bands == ["B8", "B4", "B3"]


def test_bands_in_an_npy_are_as_many_as_the_facts_say(tmp_path):
    """Tiles of 8 x 9 pixels and 13 bands, as moco-data build writes them: the shorter side is no band."""
    arrays = list(draw((3, 13, 8, 9)))
    write_tiles(tmp_path, arrays, TileFacts(SENTINEL2, "uint16", "sentinel2"))
    tiles = tiles_of(tmp_path, 2, bands=["B12", "B2"], scaling="reflectance")
    assert np.array_equal(tiles[2].numpy(), arrays[2][[12, 1]])


def test_bands_without_names_are_named_and_chosen_among(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = np.random.default_rng(0).integers(0, 4000, (3, 5, 9, 9)).astype(np.uint16)
    array_shards(arrays, tmp_path / "t")
    names = ["B02", "b3", "B4", "B8", "elevation"]
    tiles = tiles_of("t", 2, stored_bands=names, bands=["elevation", "B2"], scaling="percentiles")
    assert (tiles.bands, tiles.declared_bands) == (["elevation", "B2"], ["B2", "B3", "B4", "B8", "elevation"])
    assert np.array_equal(tiles[2].numpy(), arrays[2][[4, 0]])
    whole = tiles_of("t", 5, stored_bands=names, scaling="percentiles")
    assert whole.bands == whole.declared_bands == ["B2", "B3", "B4", "B8", "elevation"]
    assert np.array_equal(whole[1].numpy(), arrays[1])
    assert tiles_of("t", 5, bands=names, scaling="percentiles").declared_bands is None
    assert message("t", 2, stored_bands=names, bands=["B2", "B5"]) == (
        "data.bands=[B2, B5] but 't' has [B2, B3, B4, B8, elevation]: B5 is not there"
    )
    assert message("t", 2, stored_bands=["B2", "B3"]) == (
        "data.stored_bands=[B2, B3] names 2 bands, but the tiles in 't' have 5; name all, in their order: "
        "data.stored_bands=[B1, B2, B3, B4, B5]"
    )
    assert message("t", 3, stored_bands=names) == (
        "encoder.bands=3 but the tiles in 't' have 5 [B2, B3, B4, B8, elevation]; encoder.bands=5 works, or "
        "data.bands=[B4, B3, B2]"
    )
    array_shards(arrays[:, :3], tmp_path / "three")
    assert message("three", 2).endswith(
        "encoder.bands=3 works, or data.bands chooses after all are named: data.stored_bands=[B1, B2, B3]"
    )


def test_names_that_are_stored_are_not_said_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    array_shards(np.ones((1, 9, 9, 2), np.uint16), tmp_path / "t")
    (tmp_path / "t" / "tiles.json").write_text(TileFacts(["B4", "B3"], "uint16").to_json())
    tiles = tiles_of("t", 1, stored_bands=["b04", "B03"], bands=["B3"], scaling="percentiles")
    assert tiles[0].shape == (1, 9, 9)
    assert message("t", 2, stored_bands=["B3", "B4"]) == (
        "data.stored_bands=[B3, B4], but the bands of 't' have names: [B4, B3]; data.stored_bands=null works"
    )


@pytest.mark.parametrize("bands_last", [False, True])
def test_stored_names_tell_which_axis_of_an_npy_is_its_bands(tmp_path, bands_last):
    arrays = draw((2, 13, 9, 10))
    for index, array in enumerate(arrays):
        put(tmp_path / f"{index}.npy", npy(array.transpose(1, 2, 0) if bands_last else array))
    tiles = tiles_of(tmp_path, 2, stored_bands=SENTINEL2, bands=["B12", "B2"], scaling="reflectance")
    assert np.array_equal(tiles[1].numpy(), arrays[1][[12, 1]])
