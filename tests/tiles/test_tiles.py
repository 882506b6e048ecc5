"""Tiles of any source: pixels, errors, damaged tiles, pairs."""

import pickle

import datasets
import numpy as np
import pytest
import torch
from support.source_files import (
    FEATURES,
    IMAGE,
    error_message,
    image_rows,
    image_value,
    random_pixels,
    tiles_of,
    write_array_shards,
)
from support.tile_files import npy

from moco_accel.common.errors import UserError
from moco_accel.images.headers import DamagedTile
from moco_accel.sources.shard_writer import write_shards


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("streaming", [False, True])
def test_tiles_are_read_bit_for_bit_in_order(tmp_path, streaming):
    arrays = random_pixels(150)
    assert write_shards(iter(image_rows(arrays)), FEATURES, tmp_path / "t", max_shard_bytes=20_000) == 150
    tiles = tiles_of(tmp_path / "t", streaming=streaming)
    assert (len(tiles), tiles.bands, tiles.dtype) == (150, ["red", "green", "blue"], torch.uint8)
    assert (tiles.metadata, tiles.statistics, tiles.sensor, tiles.image_column) == (None, None, None, "image")
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


def test_a_file_and_a_glob_are_sources(tmp_path):
    write_shards(image_rows(random_pixels(70)), FEATURES, tmp_path / "t", max_shard_bytes=1)
    (tmp_path / "t" / "tiles.txt").write_text("not a shard")
    assert len(tiles_of(tmp_path / "t" / "tiles-00001-of-00002.parquet")) == 6
    assert len(tiles_of(tmp_path / "t" / "tiles*")) == 70
    assert len(tiles_of(tmp_path / "**" / "*-of-*.parquet")) == 70


def test_a_grey_tile_among_coloured_ones_is_expanded(tmp_path):
    grey = random_pixels(1, bands=1)[0]
    write_shards([{"image": image_value(random_pixels(1)[0])}, {"image": image_value(grey)}], IMAGE, tmp_path / "t")
    assert np.array_equal(tiles_of(tmp_path / "t")[1].numpy(), np.stack([grey] * 3))


@pytest.mark.parametrize("streaming", [False, True])
def test_tiles_are_pickled_without_their_pixels(tmp_path, streaming):
    write_shards(image_rows(random_pixels(40, size=64)), FEATURES, tmp_path / "t")
    tiles = tiles_of(tmp_path / "t", streaming=streaming)
    assert tiles[7].shape == (3, 64, 64)  # decoded pixels are not pickled
    packed = pickle.dumps(tiles)
    assert len(packed) < 20_000 < 40 * 64 * 64 * 3
    assert torch.equal(pickle.loads(packed)[7], tiles[7])


def test_errors_name_the_field_and_a_value_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    advice = "has no tiles: no parquet, arrow or tar shards, and no images; build some: moco-data build YOUR_IMAGES"
    assert error_message("x") == f"data.source='x' {advice} x"
    assert error_message("x/*.parquet", field="evaluation.test_source") == (
        f"evaluation.test_source='x/*.parquet' {advice} data/tiles"
    )
    write_shards(image_rows(random_pixels(70)), FEATURES, tmp_path / "t" / "train", max_shard_bytes=1)
    assert error_message("t") == "data.source='t' has no tiles of its own; did you mean t/train?"
    assert error_message("t/train", image_column="img") == (
        "data.image_column='img' is not a column of 't/train' (image, label, note); data.image_column=image works"
    )
    assert error_message("t/train", image_column="note").endswith(
        "not Image, bytes or Array3D of numbers; data.image_column=image works"
    )
    assert error_message("t/train", pair_column="after") == (
        "data.pair_column='after' is not a second image column of 't/train' (image); data.pair_column=null works: "
        "both views of one tile"
    )
    assert error_message("t/train", 13) == (
        "encoder.bands=13 but the tiles in 't/train' have 3 [red, green, blue]; encoder.bands=3 works"
    )
    (tmp_path / "t/train/tiles-00001-of-00002.parquet").rename(tmp_path / "away")
    assert error_message("t/train") == "data.source='t/train' holds 1 of 2 shards tiles-…; rebuild or copy them again"
    (tmp_path / "t/train/tiles-00001-of-00002.parquet").write_bytes((tmp_path / "away").read_bytes()[:500])
    assert "tiles-00001-of-00002.parquet is not a complete parquet file" in error_message("t/train")


def test_array_bands_and_label_errors(tmp_path):
    features = datasets.Features({"image": datasets.Array3D((2, 8, 9), "uint8"), "share": datasets.Value("float32")})
    features["name"] = datasets.Value("string")
    rows = [{"image": np.zeros((2, 8, 9), np.uint8), "share": 0.5, "name": name} for name in ("sea", "ice", "sea")]
    write_shards(rows, features, tmp_path)
    assert error_message(tmp_path, 3).endswith("have 2; encoder.bands=2 works")
    tiles = tiles_of(tmp_path, 2)
    assert tiles.bands is None
    with pytest.raises(UserError, match="not ClassLabel or integers"):
        tiles.labels("share")
    with pytest.raises(UserError, match="no column 'label'; its columns: image, share, name"):
        tiles.column("label")
    assert tiles.labels("name") == ([1, 0, 1], ["ice", "sea"])
    write_array_shards(np.zeros((1, 9, 8, 9), np.uint8), tmp_path / "cube")
    assert "has the shape [9, 8, 9]: its bands may be the first or the last axis" in error_message(tmp_path / "cube", 9)


def damage_reason(tiles, index):
    """Return why a tile is damaged."""
    with pytest.raises(DamagedTile) as caught:
        tiles[index]
    assert "\n" not in str(caught.value)
    reason, location = str(caught.value).rsplit(": ", 1)
    assert location.endswith(".parquet")
    assert location.startswith(f"row {index} of ")
    return reason


@pytest.mark.parametrize("streaming", [False, True])
def test_damaged_tiles_have_a_reason(tmp_path, streaming):
    whole = image_value(random_pixels(1, size=64)[0])
    bad = [
        {"bytes": whole["bytes"][:-200], "path": None},
        {"bytes": b"", "path": None},
        {"bytes": None, "path": str(tmp_path / "gone.png")},
        None,
        {"bytes": npy(np.zeros((4, 8, 8), np.uint8)), "path": None},
        image_value(np.zeros((8, 8), np.uint16)),
        image_value(random_pixels(1, 7)[0]),
    ]
    write_shards([{"image": image} for image in [whole, *bad]], IMAGE, tmp_path / "t")
    tiles = tiles_of(tmp_path / "t", streaming=streaming)
    reasons = [damage_reason(tiles, index) for index in range(1, 8)]
    assert reasons[0].startswith("cannot be decoded (")
    assert reasons[1:] == [
        "is not JPEG, PNG, TIFF, JPEG 2000 or .npy (starts with b'')",
        f"cannot be read (No such file or directory: {tmp_path}/gone.png)",
        "is missing",
        "has 4 bands, not 3",
        "is uint16, not uint8",
        "has the wrong size (7 x 7 pixels; at least 8 a side)",
    ]


def test_a_float_tile_without_any_data_is_damaged(tmp_path):
    arrays = np.ones((4, 2, 9, 9), np.float32)
    arrays[1, 0, 3, 3], arrays[2, 1, 0, :2], arrays[3, 1] = np.nan, -np.inf, np.inf
    write_array_shards(arrays, tmp_path / "t")
    tiles = tiles_of(tmp_path / "t", 2, scaling="percentiles")
    assert [int(tiles[i].isnan().sum()) for i in (0, 1, 2)] == [0, 1, 2]
    assert damage_reason(tiles, 3).startswith("holds no pixel with data in all bands")


def test_other_tiles_need_not_match_a_damaged_first_tile(tmp_path):
    good = random_pixels(2)
    rows = [{"image": {"bytes": b"\xff\xd8\xff", "path": None}}, *({"image": image_value(a)} for a in good)]
    write_shards(rows, IMAGE, tmp_path / "t")
    tiles = tiles_of(tmp_path / "t")
    assert damage_reason(tiles, 0).startswith("cannot be decoded")
    assert np.array_equal(tiles[2].numpy(), good[1].transpose(2, 0, 1))
    write_shards(rows[:1] * 30, IMAGE, tmp_path / "all")
    message = error_message(tmp_path / "all")
    start, *reasons = message.replace("rebuild them. ", "rebuild them; ").split("; ")
    assert start == f"data.source='{tmp_path}/all': none of its first 20 tiles can be read"
    assert [reason.split(" cannot be decoded (")[0] for reason in reasons[1:]] == ["tile 0", "tile 1", "tile 2", "…"]
    write_shards(rows[:1] * 2, IMAGE, tmp_path / "two")
    assert "none of its first 2 tiles" in error_message(tmp_path / "two")
    assert "inspect" not in message


def test_pairs(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "image_pair": datasets.Image()})
    summer, winter = random_pixels(3, seed=1), random_pixels(3, seed=2)
    rows = [{"image": image_value(a), "image_pair": image_value(b)} for a, b in zip(summer, winter, strict=True)]
    write_shards(rows, features, tmp_path)
    tiles = tiles_of(tmp_path, pair_column="image_pair", bands=["blue", "red"], num_bands=2)
    assert np.array_equal(tiles[1].numpy(), summer[1].transpose(2, 0, 1)[[2, 0]])
    assert np.array_equal(tiles.pair(1).numpy(), winter[1].transpose(2, 0, 1)[[2, 0]])
    alone = tiles_of(tmp_path)  # the paired column is no candidate
    assert (alone.image_column, alone[1].shape) == ("image", (3, 8, 8))
    turned = tiles_of(tmp_path, pair_column="image")
    assert np.array_equal(turned[1].numpy(), winter[1].transpose(2, 0, 1))
    assert np.array_equal(turned.pair(1).numpy(), summer[1].transpose(2, 0, 1))
    for mistyped, image_column in (("image_pari", None), ("image", "image"), ("pair", None)):
        assert error_message(tmp_path, pair_column=mistyped, image_column=image_column) == (
            f"data.pair_column='{mistyped}' is not a second image column of '{tmp_path}' (image, image_pair); "
            f"data.pair_column=image_pair works"
        )


def test_data_pair_column_is_no_candidate(tmp_path):
    features = datasets.Features({"before": datasets.Image(), "after": datasets.Image()})
    write_shards([{"before": image_value(a), "after": image_value(a)} for a in random_pixels(2)], features, tmp_path)
    assert tiles_of(tmp_path, pair_column="after").image_column == "before"
    assert "data.pair_column='aftr' is not a second image column" in error_message(tmp_path, pair_column="aftr")
    assert error_message(tmp_path) == (
        f"data.image_column=null, and '{tmp_path}' has several image columns (before, after); "
        f"data.image_column=before works"
    )


def test_unlabelled_tiles(tmp_path):
    """None and -1, which public datasets use for unlabelled tiles, are no class."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "number": datasets.Value("int32"),
            "name": datasets.ClassLabel(names=["sea", "land"]),
            "none": datasets.Value("int64"),
        }
    )
    values = [(2, 1), (None, -1), (-1, None), (0, 0)]
    rows = [
        {"image": image_value(array), "number": number, "name": name, "none": None}
        for array, (number, name) in zip(random_pixels(4), values, strict=True)
    ]
    write_shards(rows, features, tmp_path)
    tiles = tiles_of(tmp_path, streaming=True)
    assert tiles.labels("number") == ([2, None, None, 0], ["0", "1", "2"])
    assert tiles.label_names("number") == ["0", "1", "2"]
    assert tiles.labels("name") == ([1, None, None, 0], ["sea", "land"])
    assert tiles.labels("none") == ([None] * 4, [])


def test_ids_are_no_classes(tmp_path):
    """Names for all numbers up to 10^9 would exhaust memory."""
    features = datasets.Features(
        {"image": datasets.Image(), "id": datasets.Value("int64"), "file": datasets.Value("string")}
    )
    image = image_value(random_pixels(1)[0])
    rows = [{"image": image, "id": index, "file": f"{index}.tif"} for index in range(10_001)]
    rows[0]["id"] = 10**9
    write_shards(rows, features, tmp_path / "many")
    tiles = tiles_of(tmp_path / "many", streaming=True)
    for column, count in (("id", "1,000,000,001"), ("file", "10,001")):
        with pytest.raises(UserError, match=f"has {count} classes; a column with at most 10,000 works"):
            tiles.labels(column)
    write_shards(rows[1:10_000] + rows[1:2], features, tmp_path / "most")
    most = tiles_of(tmp_path / "most", streaming=True)
    assert [len(most.labels(column)[1]) for column in ("id", "file")] == [10_000, 9_999]
