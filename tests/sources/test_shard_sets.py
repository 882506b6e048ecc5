"""Which files of a folder make the set: splits, what save_to_disk names, whole sets of shards."""

from __future__ import annotations

import json
import shutil

import datasets
import numpy as np
import pytest
from support.source_files import (
    FEATURES,
    IMAGE,
    encode_image,
    error_message,
    image_rows,
    image_value,
    random_pixels,
    tiles_of,
    write_file,
    write_tar,
)

from moco_accel.sources.shard_sets import split_of_shard

PIXELS = random_pixels(15)


def dataset(first: int, last: int) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"image": image_value(a)} for a in PIXELS[first:last]], IMAGE)


def write_shard(path, first, last):
    """Write tiles `first` to `last` as parquet, arrow or tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        dataset(first, last).to_parquet(path)
    elif path.suffix == ".tar":
        write_tar(path, [(f"{n}.png", encode_image(PIXELS[n])) for n in range(first, last)])
    else:
        dataset(first, last).save_to_disk(path.parent / "saved")
        next((path.parent / "saved").glob("*.arrow")).rename(path)
        shutil.rmtree(path.parent / "saved")


def numbers_of(source, **data):
    """Return the numbers of the tiles that a source yields."""
    tiles = tiles_of(source, **data)
    expected = [pixels.transpose(2, 0, 1) for pixels in PIXELS]
    return [next(n for n, e in enumerate(expected) if np.array_equal(tiles[i].numpy(), e)) for i in range(len(tiles))]


@pytest.mark.parametrize(
    ("train", "test", "asked"),
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet", "test"),
        ("train.parquet", "validation.parquet", "val"),
        ("eurosat-train-0001.parquet", "eurosat-dev-0001.parquet", "dev"),
        ("train-00000-of-00001-a09b74b3ef9c3b56.parquet", "Test-00000-of-00001-0123456789abcdef.parquet", "test"),
        ("x-train.arrow", "x-test.arrow", "test"),
        ("imagenet-train-000000.tar", "imagenet-val-000000.tar", "validation"),
    ],
)
def test_a_split_is_obeyed(tmp_path, monkeypatch, train, test, asked):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "d" / train, 0, 12)
    write_shard(tmp_path / "d" / test, 12, 15)
    assert numbers_of("d", split="train") == numbers_of("d:train") == list(range(12))
    assert numbers_of("d", split=asked) == numbers_of(f"d:{asked}") == numbers_of(f"d/*:{asked}") == [12, 13, 14]
    word = split_of_shard(test)
    both = ", ".join(sorted(["train (1 shard)", f"{word} (1 shard)"], key=lambda text: text.startswith("train") == 0))
    message = error_message("d")
    assert message.startswith("data.source='d' holds several splits, ")
    assert all(part in message for part in both.split(", "))
    assert message.endswith(f"data.split=train works, or data.source='d/*.{train.rpartition('.')[2]}' for all")
    assert sorted(numbers_of(f"d/*.{train.rpartition('.')[2]}")) == list(range(15))
    message = error_message("d", split="demo")
    assert message.startswith("data.split='demo' is not a split of 'd', which holds ")
    assert message.endswith("data.split=train works")
    assert error_message("d", field="evaluation.test_source").endswith(
        f"evaluation.test_source=d:train works, or evaluation.test_source='d/*.{train.rpartition('.')[2]}' for all"
    )


def test_labelled_tiles_take_their_split_after_a_colon(tmp_path, monkeypatch):
    """`data.split` is of `data.source`."""
    monkeypatch.chdir(tmp_path)
    for first, name in enumerate(("train", "test")):
        write_shard(tmp_path / "d" / f"{name}.parquet", first, first + 1)
    for field in ("--data", "evaluation.train_source"):
        message = error_message("d", field=field)
        assert f"{field}=d:train works" in message
        assert "data.split" not in message
        assert error_message("d:dev", field=field).startswith(f"{field}='d:dev': 'dev' is not a split of 'd'")


def test_what_a_split_leaves_out_is_printed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "d" / "train.parquet", 0, 12)
    write_shard(tmp_path / "d" / "test.parquet", 12, 15)
    capfd.readouterr()
    tiles_of("d", split="train", streaming=True)
    assert capfd.readouterr().err == "data.source='d': train (1 shard); left out: test (1 shard)\n"
    tiles_of("d/*.parquet", streaming=True)
    assert capfd.readouterr().err == (
        "data.source='d/*.parquet': all of test (1 shard), train (1 shard); data.split takes one of them\n"
    )
    monkeypatch.setenv("RANK", "1")
    tiles_of("d/*.parquet", streaming=True)
    assert capfd.readouterr().err == ""


def test_shards_without_a_split_in_their_names_are_one_set(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "d" / "forest-2020.parquet", 0, 3)
    write_shard(tmp_path / "d" / "the-test-site-1.parquet", 3, 5)
    capfd.readouterr()
    for split in (None, "train"):
        assert numbers_of("d", split=split, streaming=True) == [0, 1, 2, 3, 4]
    assert capfd.readouterr().err == ""
    assert numbers_of("d", split="test", streaming=True) == [0, 1, 2, 3, 4]
    assert (
        capfd.readouterr().err.strip() == "data.source='d': no name tells a split; data.split='test' leaves nothing out"
    )
    assert "is not a split of 'd', which holds no split (2 shards)" in error_message("d:test")
    write_shard(tmp_path / "d" / "train.parquet", 5, 6)
    assert "no split (2 shards), train (1 shard)" in error_message("d")
    assert numbers_of("d", split="train") == [5]


def test_splits_in_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "d" / "train" / "0.tar", 0, 4)
    write_shard(tmp_path / "d" / "val" / "0.tar", 4, 6)
    assert "did you mean one of d/train, d/val?" in error_message("d")
    assert numbers_of("d", split="validation") == numbers_of("d:val") == numbers_of("d/*/*.tar:val") == [4, 5]
    write_shard(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", 0, 4)
    write_shard(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", 4, 6)
    assert error_message("hub").endswith("data.split=train works, or data.source='hub/data/*.parquet' for all")
    assert numbers_of("hub", split="test") == numbers_of("hub:test") == [4, 5]
    assert numbers_of("hub/data:test") == [4, 5]


def test_images_in_folders_of_splits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, pixels in enumerate(PIXELS[:6]):
        folder = f"{'train' if number < 4 else 'test'}/{'land' if number % 2 else 'sea'}"
        write_file(tmp_path / "d" / folder / f"{number}.png", encode_image(pixels))
    message = error_message("d")
    assert "train (4 images), test (2 images)" in message
    assert message.endswith("data.split=train works, or data.source='d/**/*' for all")
    assert len(numbers_of("d/**/*")) == 6
    tiles = tiles_of("d", split="test")
    assert tiles.column("file") == ["land/5.png", "sea/4.png"]
    assert tiles.labels("label") == ([0, 1], ["land", "sea"])
    shutil.rmtree(tmp_path / "d" / "test")
    write_file(tmp_path / "d" / "ship" / "a.png", encode_image(PIXELS[7]))
    assert len(numbers_of("d")) == 5  # one class may be called train


def test_save_to_disk_names_its_files(tmp_path, monkeypatch, capfd):
    """What maps cache beside a saved set, and what an earlier save left, are no tiles."""
    monkeypatch.chdir(tmp_path)
    dataset(0, 12).save_to_disk("d", num_shards=3)
    datasets.load_from_disk("d").map(lambda row: {"n": 1})
    datasets.load_from_disk("d").shuffle(seed=1)
    write_shard(tmp_path / "d" / "data-00007-of-00009.arrow", 12, 15)
    assert len(list((tmp_path / "d").glob("cache-*.arrow"))) >= 1
    for source in ("d", "d/*.arrow"):
        capfd.readouterr()
        assert numbers_of(source) == list(range(12))
        assert "files are left out, caches of datasets or files that state.json does not name" in capfd.readouterr().err
    state = json.loads((tmp_path / "d" / "state.json").read_text())
    state["_data_files"].reverse()
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    assert numbers_of("d") == [*range(8, 12), *range(4, 8), *range(4)]
    (tmp_path / "d" / "data-00001-of-00003.arrow").unlink()
    assert "names 3 files, and 1 of them are missing (data-00001-of-00003.arrow)" in error_message("d")
    (tmp_path / "d" / "state.json").unlink()
    (tmp_path / "d" / "data-00007-of-00009.arrow").unlink()
    assert "holds 2 of 3 shards data-…" in error_message("d")


def test_caches_without_a_state_are_no_tiles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "d" / "tiles.arrow", 0, 5)
    write_shard(tmp_path / "d" / "cache-0123.arrow", 0, 5)
    write_shard(tmp_path / "d" / "tmp0ab.arrow", 0, 5)
    assert numbers_of("d") == list(range(5))
    assert numbers_of("d/cache-0123.arrow") == list(range(5))  # named by itself
    write_shard(tmp_path / "p" / "cache-0123.arrow", 0, 5)
    write_shard(tmp_path / "p" / "tiles.parquet", 5, 7)
    assert numbers_of("p") == [5, 6]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is damaged ("),
        ("[]", "is damaged (list, not an object)"),
        ('{"_data_files": [{"filename": "../x.arrow"}]}', "is damaged (its files are no names)"),
        ('{"_data_files": 3}', "is damaged (its files are no names)"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path, text, reason):
    dataset(0, 3).save_to_disk(tmp_path / "d")
    (tmp_path / "d" / "state.json").write_text(text)
    assert reason in error_message(tmp_path / "d")


def test_saved_splits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datasets.DatasetDict({"train": dataset(0, 4), "holdout": dataset(4, 6)}).save_to_disk("d")
    assert numbers_of("d", split="holdout") == numbers_of("d:holdout") == [4, 5]
    assert error_message("d").endswith("data.split=train works")
    assert numbers_of("d:train") == [0, 1, 2, 3]
    assert "holds train (1 folder), holdout (1 folder)" in error_message("d", split="test")


def test_an_indices_mapping_is_refused_with_what_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset(0, 4).save_to_disk("d")
    datasets.Dataset.from_dict({"indices": [2, 0]}).save_to_disk("rows")
    next((tmp_path / "rows").glob("*.arrow")).rename(tmp_path / "d" / "indices.arrow")
    state = json.loads((tmp_path / "d" / "state.json").read_text()) | {
        "_indices_files": [{"filename": "indices.arrow"}]
    }
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    message = error_message("d")
    exec(message.partition("in Python, ")[2].partition(" makes a folder")[0], {"datasets": datasets})
    assert numbers_of("flat") == [2, 0]


def test_two_sets_of_one_name_are_refused(tmp_path, monkeypatch):
    """A set that was written again with another number of shards holds every tile twice."""
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "d" / "part-00000-of-00001.parquet", 0, 4)
    write_shard(tmp_path / "d" / "part-00000-of-00002.parquet", 0, 2)
    write_shard(tmp_path / "d" / "part-00001-of-00002.parquet", 2, 4)
    message = error_message("d")
    assert "holds several sets of shards part-…, of 1 and of 2" in message
    works = message.partition("data.source='d/")[2].partition("'")[0]
    assert numbers_of(f"d/{works}") == [0, 1, 2, 3]
    write_tar(tmp_path / "t" / "x-00000-of-00003.tar", [("0.png", encode_image(PIXELS[0]))])
    assert "holds 1 of 3 shards x-…" in error_message("t")


def test_what_lies_beside_shards_is_printed_or_refused(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "d" / "a.tar", 0, 2)
    write_shard(tmp_path / "d" / "more" / "b.tar", 2, 4)
    write_file(tmp_path / "d" / "sheet.png", encode_image(PIXELS[0]))
    assert numbers_of("d") == [0, 1]
    printed = capfd.readouterr().err
    assert "1 images beside them are left out, e.g. sheet.png" in printed
    assert "1 folders with shards beside them are left out, e.g. more" in printed
    (tmp_path / "d" / "c.tar.gz").touch()
    assert "gunzip d/c.tar.gz makes a .tar that works" in error_message("d")


def test_rows_keep_their_columns_through_a_split(tmp_path):
    datasets.Dataset.from_list(image_rows(PIXELS[:4]), FEATURES).to_parquet(tmp_path / "train.parquet")
    datasets.Dataset.from_list(image_rows(PIXELS[4:6]), FEATURES).to_parquet(tmp_path / "test.parquet")
    assert tiles_of(f"{tmp_path}:test").labels("label") == ([0, 1], ["sea", "land"])
