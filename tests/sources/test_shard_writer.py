"""Parquet shards: sizes, names, features, and errors while writing."""

import errno

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from moco_accel.common.errors import UserError
from moco_accel.sources.shard_writer import write_shards

FEATURES = datasets.Features(
    {"image": datasets.Array3D((8, 8, 3), "uint8"), "label": datasets.ClassLabel(names=["sea", "land"])}
)


def rows(count, seed=0):
    tiles = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [{"label": i % 2, "image": tile} for i, tile in enumerate(tiles)]


def images_in(folder):
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).column("image").to_pylist()]


def test_shards_are_split_by_size_and_named_once_complete(tmp_path):
    assert write_shards(iter(rows(150)), FEATURES, tmp_path / "t", max_shard_bytes=30_000) == 150
    assert [p.name for p in sorted((tmp_path / "t").iterdir())] == [
        f"tiles-0000{n}-of-00003.parquet" for n in range(3)
    ]  # chunks of 64 rows of 192 bytes plus offsets: one chunk per shard
    assert np.array_equal(images_in(tmp_path / "t"), [row["image"] for row in rows(150)])
    assert write_shards([], FEATURES, tmp_path / "none") == 0


def test_hugging_face_restores_the_features(tmp_path):
    write_shards(rows(3), FEATURES, tmp_path / "t")
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "t" / "*.parquet"))
    assert loaded.features == FEATURES
    assert loaded.with_format("numpy")[2]["image"].shape == (8, 8, 3)


def test_an_error_while_writing_keeps_the_old_shards(tmp_path):
    old = rows(2, seed=3)
    write_shards(old, FEATURES, tmp_path / "t")

    def broken():
        yield from rows(100, seed=4)
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        write_shards(broken(), FEATURES, tmp_path / "t", overwrite=True)
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["tiles-00000-of-00001.parquet"]
    assert np.array_equal(images_in(tmp_path / "t"), [row["image"] for row in old])
    write_shards(rows(1, seed=5), FEATURES, tmp_path / "t", overwrite=True)
    assert np.array_equal(images_in(tmp_path / "t"), [rows(1, seed=5)[0]["image"]])


def test_a_full_disk_leaves_no_shard(tmp_path):
    """A limit on file sizes simulates it."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_shards(rows(1000), FEATURES, tmp_path / "t")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert list((tmp_path / "t").iterdir()) == []


def test_folder_with_other_shards_is_refused(tmp_path):
    write_shards(rows(1), FEATURES, tmp_path)
    with pytest.raises(UserError, match="holds shards already"):
        write_shards(rows(1), FEATURES, tmp_path)
    (tmp_path / "foreign.parquet").touch()
    with pytest.raises(UserError, match=r"foreign\.parquet"):
        write_shards(rows(1), FEATURES, tmp_path, overwrite=True)
