"""Arrow files, and the arrow cache of parquet shards."""

import socket

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet
from support.source_files import (
    FEATURES,
    IMAGE,
    error_message,
    image_rows,
    image_value,
    random_array,
    random_pixels,
    tiles_of,
    write_array_shards,
)

from moco_accel.sources import arrow_store
from moco_accel.sources.shard_writer import write_shards


def test_arrow_files_are_read_in_place(tmp_path, capfd):
    arrays = random_array((7, 20, 20, 3), "uint8")
    dataset = datasets.Dataset.from_list([{"image": image_value(a)} for a in arrays], features=IMAGE)
    datasets.disable_progress_bars()
    dataset.save_to_disk(tmp_path / "t", num_shards=2)
    for source, count in (("t", 7), ("t/data-00001-of-00002.arrow", 3), ("t/*.arrow", 7)):
        tiles = tiles_of(tmp_path / source)
        assert len(tiles) == count
        assert np.array_equal(tiles[-1].numpy(), arrays[-1].transpose(2, 0, 1))
    assert tiles_of(tmp_path / "t").shard_sizes == [4, 3]
    assert not (tmp_path / "cache").exists()
    assert capfd.readouterr().err == ""
    with pa.ipc.new_file(tmp_path / "t" / "data-00001-of-00002.arrow", dataset.data.table.schema) as file:
        file.write_table(dataset.data.table)
    assert "data-00001-of-00002.arrow is not an Arrow stream" in error_message(tmp_path / "t")
    (tmp_path / "t" / "more.parquet").touch()
    assert error_message(tmp_path / "t").endswith(
        f"holds .arrow and .parquet files; data.source='{tmp_path}/t/*.arrow' works"
    )


def test_cache_is_announced_and_rebuilt_only_when_shards_change(tmp_path, monkeypatch, capfd):
    first, second = random_pixels(3, seed=1), random_pixels(3, seed=2)
    write_shards(image_rows(first), FEATURES, tmp_path / "t")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("the network was used"))
    tiles_of(tmp_path / "t")
    printed = capfd.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith(f"preparing 3 tiles of {tmp_path / 't'} as an arrow cache, once: 0.0 MiB in {tmp_path}")
    write_shards(image_rows(second), FEATURES, tmp_path / "t", overwrite=True)
    assert np.array_equal(tiles_of(tmp_path / "t")[0].numpy(), second[0].transpose(2, 0, 1))
    monkeypatch.setattr(Parquet, "_generate_tables", lambda *a, **k: pytest.fail("built again"))
    capfd.readouterr()
    tiles_of(tmp_path / "t")
    assert capfd.readouterr() == ("", "")


def test_cache_without_disk_space_is_refused_before_it_is_built(tmp_path, monkeypatch):
    zeros = np.zeros((64, 3, 64, 64), np.uint8)  # 768 KiB, which parquet compresses to almost nothing
    write_array_shards(zeros, tmp_path / "t")
    usage = type("Usage", (), {"free": 64 * 3 * 64 * 64})
    monkeypatch.setattr(arrow_store.shutil, "disk_usage", lambda path: usage)
    message = error_message(tmp_path / "t")
    assert message.startswith(f"data.source='{tmp_path}/t': its arrow cache takes 0.9 MiB, and {tmp_path}")
    assert "has 0.8 MiB left" in message
    assert "data.streaming=true needs no cache" in message
    assert len(tiles_of(tmp_path / "t", streaming=True)) == 64
