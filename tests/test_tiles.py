import io
import pickle
import socket

import datasets
import numpy as np
import pytest
import torch
from datasets.packaged_modules.parquet.parquet import Parquet
from PIL import Image

from moco_accel.imagery.shard_writer import write_shards
from moco_accel.order import Reading
from moco_accel.reading import arrow_store
from moco_accel.reading.decoding import DamagedTile
from moco_accel.reading.tiles import open_tiles
from moco_accel.recipe_text import RecipeError
from moco_accel.recipe_tiles import Data
from moco_accel.tile_facts import BandCounter, TileFacts

FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=["sea", "land"]), "note": datasets.Value("string")}
)
IMAGE = datasets.Features({"image": datasets.Image()})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def tiles_of(source, num_bands=3, **data):
    return open_tiles(str(source), Data(**data), num_bands)


def pixels(count, size=8, bands=3, seed=0):
    shape = (count, size, size, bands) if bands > 1 else (count, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array, kind="png"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


def image_rows(arrays):
    return [{"image": encoded(a), "label": i % 2, "note": f"tile {i}"} for i, a in enumerate(arrays)]


def array_shards(arrays, folder, **kwargs):
    features = datasets.Features({"image": datasets.Array3D(arrays[0].shape, str(arrays[0].dtype))})
    write_shards([{"image": a} for a in arrays], features, folder, **kwargs)


@pytest.mark.parametrize("streaming", [False, True])
def test_tiles_come_back_bit_for_bit_in_order(tmp_path, streaming):
    arrays = pixels(150)
    assert write_shards(iter(image_rows(arrays)), FEATURES, tmp_path / "t", max_shard_bytes=20_000) == 150
    tiles = tiles_of(tmp_path / "t", streaming=streaming)
    assert (len(tiles), tiles.bands, tiles.dtype) == (150, ["red", "green", "blue"], torch.uint8)
    assert (tiles.facts, tiles.statistics, tiles.sensor, tiles.image_column) == (None, None, None, "image")
    assert tiles.shard_sizes == [64, 64, 22]  # rows of about 270 bytes, 64 written at a time
    for index in (0, 63, 64, 149, -1):
        assert tiles[index].dtype == torch.uint8
        assert np.array_equal(tiles[index].numpy(), arrays[index].transpose(2, 0, 1))
    assert tiles.column("label") == [0, 1] * 75
    assert tiles.column("note")[77] == "tile 77"
    assert tiles.label_names("label") == ["sea", "land"]
    assert tiles.labels("label") == ([0, 1] * 75, ["sea", "land"])
    assert tiles.column_names == ["image", "label", "note"]
    with pytest.raises(IndexError):
        tiles[150]


def test_one_file_and_a_glob_are_sources_too(tmp_path):
    write_shards(image_rows(pixels(70)), FEATURES, tmp_path / "t", max_shard_bytes=1)
    (tmp_path / "t" / "tiles.txt").write_text("not a shard")
    assert len(tiles_of(tmp_path / "t" / "tiles-00001-of-00002.parquet")) == 6
    assert len(tiles_of(tmp_path / "t" / "tiles*")) == 70
    assert len(tiles_of(tmp_path / "**" / "*-of-*.parquet")) == 70


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


def test_a_grey_tile_among_coloured_ones_is_repeated(tmp_path):
    grey = pixels(1, bands=1)[0]
    write_shards([{"image": encoded(pixels(1)[0])}, {"image": encoded(grey)}], IMAGE, tmp_path / "t")
    assert np.array_equal(tiles_of(tmp_path / "t")[1].numpy(), np.stack([grey] * 3))


@pytest.mark.parametrize("streaming", [False, True])
def test_tiles_go_to_workers_without_their_pixels(tmp_path, streaming):
    write_shards(image_rows(pixels(40, size=64)), FEATURES, tmp_path / "t")
    tiles = tiles_of(tmp_path / "t", streaming=streaming)
    assert tiles[7].shape == (3, 64, 64)  # what is read already stays behind
    packed = pickle.dumps(tiles)
    assert len(packed) < 20_000 < 40 * 64 * 64 * 3
    assert torch.equal(pickle.loads(packed)[7], tiles[7])


def test_the_cache_is_announced_follows_the_shards_and_is_not_built_twice(tmp_path, monkeypatch, capfd):
    first, second = pixels(3, seed=1), pixels(3, seed=2)
    write_shards(image_rows(first), FEATURES, tmp_path / "t")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("nothing here is the network's business"))
    tiles_of(tmp_path / "t")
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"preparing 3 tiles of {tmp_path / 't'} as an arrow cache, once: 0.0 MiB in {tmp_path}")
    write_shards(image_rows(second), FEATURES, tmp_path / "t", overwrite=True)
    assert np.array_equal(tiles_of(tmp_path / "t")[0].numpy(), second[0].transpose(2, 0, 1))
    monkeypatch.setattr(Parquet, "_generate_tables", lambda *a, **k: pytest.fail("prepared again"))
    capfd.readouterr()
    tiles_of(tmp_path / "t")
    assert capfd.readouterr() == ("", "")


def test_a_cache_that_has_no_room_is_refused_before_it_is_begun(tmp_path, monkeypatch):
    array_shards(np.zeros((64, 3, 64, 64), np.uint8), tmp_path / "t")  # 768 KiB, of which parquet keeps next to nothing
    usage = type("Usage", (), {"free": 64 * 3 * 64 * 64})
    monkeypatch.setattr(arrow_store.shutil, "disk_usage", lambda path: usage)
    said = message(tmp_path / "t")
    assert said.startswith(f"data.source='{tmp_path}/t': its arrow cache takes 0.8 MiB, and {tmp_path}")
    assert "has 0.8 MiB left" in said
    assert "data.streaming=true needs no cache" in said
    assert len(tiles_of(tmp_path / "t", streaming=True)) == 64


def facts_of(arrays, bands, **kwargs):
    counter = BandCounter(len(bands), arrays.dtype)
    for array in arrays:
        counter.add(array)
    return TileFacts(bands, str(arrays.dtype), statistics=counter.statistics(), **kwargs)


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
    import pyarrow.parquet as pq

    array_shards(np.ones((2, 9, 9, 2), np.uint8), tmp_path / "t")
    path = next((tmp_path / "t").glob("*.parquet"))
    table = pq.read_table(path)
    facts = TileFacts(["nir", "red"], "uint8", "landsat8")
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **facts.schema_metadata()}), path)
    for streaming in (False, True):
        tiles = tiles_of(path, 2, streaming=streaming)
        assert (tiles.bands, tiles.sensor, tiles.statistics) == (["nir", "red"], "landsat8", None)


def message(source, num_bands=3, field="data.source", **data):
    with pytest.raises(RecipeError) as caught:
        open_tiles(str(source), Data(**data), num_bands, field)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bands_that_do_not_fit_name_both_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = np.ones((2, 12, 9, 9), np.uint16)
    array_shards(arrays, tmp_path / "unnamed")
    level_2a = "B1, B2, B3, B4, B5, B6, B7, B8, B8A, B9, B11, B12"
    assert message("unnamed", 12, scaling="reflectance") == (
        "data.bands=null, but the tiles in 'unnamed' have 12 bands, whose names are not stored; name them, in their "
        f"order, with encoder.bands=12: data.bands=[{level_2a}] if they are Sentinel-2's"
    )
    assert message("unnamed", 2, scaling="reflectance", bands=["B2", "B3"]).startswith(
        "data.bands=[B2, B3] names 2 bands, but the tiles in 'unnamed' have 12, whose names are not stored"
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


def test_errors_name_field_value_rule_and_a_value_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    advice = "holds no tiles: no parquet, arrow or tar shards, and no images; make some: moco-data build YOUR_IMAGES"
    assert message("x") == f"data.source='x' {advice} x"
    assert message("x/*.parquet", field="evaluation.test_source") == (
        f"evaluation.test_source='x/*.parquet' {advice} data/tiles"
    )
    write_shards(image_rows(pixels(70)), FEATURES, tmp_path / "t" / "train", max_shard_bytes=1)
    assert message("t") == "data.source='t' holds no tiles of its own; did you mean t/train?"
    assert message("t/train", image_column="img") == (
        "data.image_column='img' is not a column of 't/train' (image, label, note); data.image_column=image works"
    )
    assert message("t/train", image_column="note").endswith(
        "not Image, bytes or Array3D of uint8, uint16, int16, float32; data.image_column=image works"
    )
    assert message("t/train", pair_column="after").startswith("data.pair_column='after' is not a column of 't/train'")
    assert message("t/train", 13) == (
        "encoder.bands=13 but the tiles in 't/train' have 3 [red, green, blue]; encoder.bands=3 works"
    )
    (tmp_path / "t/train/tiles-00001-of-00002.parquet").rename(tmp_path / "away")
    assert message("t/train") == "data.source='t/train' holds 1 of 2 shards tiles-…; build or copy them anew"
    (tmp_path / "t/train/tiles-00001-of-00002.parquet").write_bytes((tmp_path / "away").read_bytes()[:500])
    assert "tiles-00001-of-00002.parquet is not a whole parquet file" in message("t/train")


def test_array_bands_and_label_errors(tmp_path):
    features = datasets.Features({"image": datasets.Array3D((2, 8, 9), "uint8"), "share": datasets.Value("float32")})
    features["name"] = datasets.Value("string")
    rows = [{"image": np.zeros((2, 8, 9), np.uint8), "share": 0.5, "name": name} for name in ("sea", "ice", "sea")]
    write_shards(rows, features, tmp_path)
    assert message(tmp_path, 3).endswith("have 2; encoder.bands=2 works")
    tiles = tiles_of(tmp_path, 2)
    assert tiles.bands is None
    with pytest.raises(RecipeError, match="not ClassLabel or integers"):
        tiles.labels("share")
    with pytest.raises(RecipeError, match="no column 'label'; its columns: image, share, name"):
        tiles.column("label")
    assert tiles.labels("name") == ([1, 0, 1], ["ice", "sea"])
    array_shards(np.zeros((1, 9, 8, 9), np.uint8), tmp_path / "cube")
    assert "has the shape [9, 8, 9]: are its bands the first or the last axis?" in message(tmp_path / "cube", 9)


def damaged(tiles, index):
    with pytest.raises(DamagedTile) as caught:
        tiles[index]
    assert "\n" not in str(caught.value)
    reason, place = str(caught.value).rsplit(": ", 1)
    assert place.endswith(".parquet")
    assert place.startswith(f"row {index} of ")
    return reason


@pytest.mark.parametrize("streaming", [False, True])
def test_damaged_tiles_say_what_is_wrong(tmp_path, streaming):
    whole = encoded(pixels(1, size=64)[0])
    bad = [
        {"bytes": whole["bytes"][:-200], "path": None},
        {"bytes": b"", "path": None},
        {"bytes": None, "path": str(tmp_path / "gone.png")},
        None,
        encoded(pixels(1, 8, 4)[0]),
        encoded(np.zeros((8, 8), np.uint16)),
        encoded(pixels(1, 7)[0]),
    ]
    write_shards([{"image": image} for image in [whole, *bad]], IMAGE, tmp_path / "t")
    tiles = tiles_of(tmp_path / "t", streaming=streaming)
    reasons = [damaged(tiles, index) for index in range(1, 8)]
    assert reasons[0].startswith("cannot be decoded (")
    assert reasons[1:] == [
        "is not JPEG, PNG, TIFF, JPEG 2000 or .npy (starts with b'')",
        f"cannot be read (No such file or directory: {tmp_path}/gone.png)",
        "is missing",
        "has 4 bands, not 3",
        "is uint16, not uint8",
        "has the wrong size (7 x 7 pixels; at least 8 a side)",
    ]


def test_a_float_that_is_not_a_number_is_damage(tmp_path):
    arrays = np.ones((3, 2, 9, 9), np.float32)
    arrays[1, 0, 3, 3], arrays[2, 1, 0, :2] = np.nan, -np.inf
    array_shards(arrays, tmp_path / "t")
    tiles = tiles_of(tmp_path / "t", 2, scaling="percentiles")
    assert [damaged(tiles, i) for i in (1, 2)] == [f"holds {n} values that are NaN or infinite" for n in (1, 2)]


def test_a_damaged_first_tile_is_not_what_the_others_are_measured_by(tmp_path):
    good = pixels(2)
    rows = [{"image": {"bytes": b"\xff\xd8\xff", "path": None}}, *({"image": encoded(a)} for a in good)]
    write_shards(rows, IMAGE, tmp_path / "t")
    tiles = tiles_of(tmp_path / "t")
    assert damaged(tiles, 0).startswith("cannot be decoded")
    assert np.array_equal(tiles[2].numpy(), good[1].transpose(2, 0, 1))
    write_shards(rows[:1] * 30, IMAGE, tmp_path / "all")
    assert "none of its first 20 tiles can be read (tile 0 cannot be decoded" in message(tmp_path / "all")


def test_pairs(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "image_pair": datasets.Image()})
    summer, winter = pixels(3, seed=1), pixels(3, seed=2)
    rows = [{"image": encoded(a), "image_pair": encoded(b)} for a, b in zip(summer, winter, strict=True)]
    write_shards(rows, features, tmp_path)
    tiles = tiles_of(tmp_path, pair_column="image_pair", bands=["blue", "red"], num_bands=2)
    assert np.array_equal(tiles[1].numpy(), summer[1].transpose(2, 0, 1)[[2, 0]])
    assert np.array_equal(tiles.pair(1).numpy(), winter[1].transpose(2, 0, 1)[[2, 0]])
    assert message(tmp_path) == (
        f"data.image_column=null, and '{tmp_path}' has several columns of imagery (image, image_pair); "
        f"data.image_column=image works"
    )


def test_only_streamed_shards_are_read_in_units(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (200, 3, 64, 64), dtype=np.uint8)
    array_shards(arrays, tmp_path / "t")
    assert tiles_of(tmp_path / "t").reading == Reading()
    reading = tiles_of(tmp_path / "t", streaming=True, shuffle_buffer_mib=2).reading
    assert reading.units == [64, 64, 64, 8]
    # three quarters of 2 MiB, in tiles of 12 KiB and what parquet adds
    assert 100 < reading.window <= 128
    array_shards(np.random.default_rng(0).integers(0, 256, (64, 3, 100, 100), dtype=np.uint8), tmp_path / "large")
    assert message(tmp_path / "large", streaming=True, shuffle_buffer_mib=1) == (
        f"data.shuffle_buffer_mib=1 is less than a row group of '{tmp_path}/large', of about 1 MiB; "
        "data.shuffle_buffer_mib=3 works, or data.streaming=false"
    )
