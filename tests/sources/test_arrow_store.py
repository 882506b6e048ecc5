"""Arrow files, and the cache that is prepared of parquet shards."""

import socket

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet
from support.source_files import FEATURES, array_shards, draw, image_rows, message, picture, pixels, tiles_of

from moco_accel.sources import arrow_store
from moco_accel.sources.shard_writer import write_shards


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_arrow_files_are_read_in_place(tmp_path, capfd):
    arrays = draw((7, 20, 20, 3), "uint8")
    features = datasets.Features({"image": datasets.Image()})
    images = [{"image": {"bytes": picture(a), "path": None}} for a in arrays]
    dataset = datasets.Dataset.from_list(images, features=features)
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
    assert "data-00001-of-00002.arrow is not an arrow stream" in message(tmp_path / "t")
    (tmp_path / "t" / "more.parquet").touch()
    assert message(tmp_path / "t").endswith(
        f"holds .arrow and .parquet files; data.source='{tmp_path}/t/*.arrow' works"
    )


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
    assert said.startswith(f"data.source='{tmp_path}/t': its arrow cache takes 0.9 MiB, and {tmp_path}")
    assert "has 0.8 MiB left" in said
    assert "data.streaming=true needs no cache" in said
    assert len(tiles_of(tmp_path / "t", streaming=True)) == 64
