"""Tar shards in the webdataset convention, read in random order."""

import json
import pickle
import resource
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from support.source_files import LEVEL_2A, encode_image, error_message, random_array, tiff, tiles_of, write_tar
from support.tile_files import npy

from moco_accel.images.headers import DamagedTile


def test_twelve_bands(tmp_path):
    arrays = random_array((5, 12, 16, 16))
    for shard, part in enumerate(np.split(np.arange(5), [3])):
        members = [(f"images/patch_{index}.tif", tiff(arrays[index])) for index in part]
        write_tar(tmp_path / "t" / f"shard-{shard:06d}.tar", [("images/readme.md", b"words"), *members])
    tiles = tiles_of(tmp_path / "t", 12, bands=LEVEL_2A, scaling="reflectance")
    assert tiles.shard_sizes == [3, 2]
    for index in (4, 0, 2, 1, 3):
        assert np.array_equal(tiles[index].numpy(), arrays[index])
    assert tiles.column("__key__") == [f"images/patch_{index}" for index in range(5)]
    assert torch.equal(pickle.loads(pickle.dumps(tiles))[3], tiles[3])
    assert len(tiles_of(tmp_path / "t" / "*-000001.tar", 12, bands=LEVEL_2A, scaling="reflectance")) == 2


@pytest.mark.parametrize(
    ("suffix", "raws", "labels"),
    [
        ("cls", [b"2", b"0", b"1\n"], ([2, 0, 1], ["0", "1", "2"])),
        ("txt", [b"sea", b"ice", b"sea"], ([1, 0, 1], ["ice", "sea"])),
        ("json", [json.dumps({"label": n, "lon": 1.5}).encode() for n in (1, 0, 1)], ([1, 0, 1], ["0", "1"])),
    ],
)
def test_labels(tmp_path, suffix, raws, labels):
    arrays = random_array((3, 12, 12, 3), "uint8")
    kinds = [("0.png", encode_image(arrays[0])), ("0.jpeg", encode_image(arrays[1], "jpeg")), ("0.npy", npy(arrays[2]))]
    members = [
        m for i, raw in enumerate(raws) for m in ((f"a{i}.png", encode_image(arrays[i])), (f"a{i}.{suffix}", raw))
    ]
    write_tar(tmp_path / "t.tar", members)
    tiles = tiles_of(tmp_path / "t.tar")
    assert tiles.labels("label") == labels
    assert np.array_equal(tiles[2].numpy(), arrays[2].transpose(2, 0, 1))
    for name, raw in kinds:
        write_tar(tmp_path / "one" / "t.tar", [(name, raw)])
        assert tiles_of(tmp_path / "one")[0].shape == (3, 12, 12)


def test_one_member_per_band(tmp_path):
    arrays = random_array((2, 2, 16, 16))
    members = [(f"{i}.B0{b + 3}.tif", tiff(arrays[i, b : b + 1])) for i in range(2) for b in range(2)]
    write_tar(tmp_path / "t.tar", [*members, ("2.B04.tif", members[0][1])])
    tiles = tiles_of(tmp_path / "t.tar", 2, bands=["B4", "B3"], scaling="reflectance")
    assert np.array_equal(tiles[1].numpy(), arrays[1][::-1])
    with pytest.raises(DamagedTile, match=r"^B3 is missing: 2 in .*t.tar$"):
        tiles[2]


def test_unreadable_tar_shards(tmp_path):
    raw = encode_image(random_array((12, 12, 3), "uint8"))
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz"):
        pass
    assert error_message(tmp_path / "t.tar.gz") == error_message(tmp_path / "*.tar.gz")
    assert error_message(tmp_path / "t.tar.gz").endswith(f"gunzip {tmp_path}/t.tar.gz makes a .tar that works")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "t.tar.gz").rename(tmp_path / "hidden" / "t.tar")
    assert "is not a complete, uncompressed tar (gunzip < " in error_message(tmp_path / "hidden")
    write_tar(tmp_path / "cut" / "t.tar", [("0.png", raw), ("1.png", raw)])
    whole = (tmp_path / "cut" / "t.tar").read_bytes()
    (tmp_path / "cut" / "t.tar").write_bytes(whole[: 512 + 512 * (-(-len(raw) // 512)) + 512 + 100])
    assert "is not a complete, uncompressed tar (unexpected end of data)" in error_message(tmp_path / "cut")
    write_tar(tmp_path / "two" / "t.tar", [("0.left.png", raw), ("0.right.png", raw)])
    assert error_message(tmp_path / "two").endswith(
        "has several image columns (left.png, right.png); data.image_column=left.png works"
    )
    assert tiles_of(tmp_path / "two", image_column="right.png").image_column == "right.png"
    write_tar(tmp_path / "words" / "t.tar", [("0.txt", b"a")])
    assert "holds tar shards without images" in error_message(tmp_path / "words")


def test_more_shards_than_open_files_are_allowed(tmp_path):
    for shard in range(40):
        raw = encode_image(random_array((12, 12, 3), "uint8", shard))
        write_tar(tmp_path / "t" / f"{shard:02}.tar", [("0.png", raw)])
    tiles = tiles_of(tmp_path / "t")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    free = [number for number in range(len(taken) + 16) if number not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[15] + 1, limits[1]))
    try:
        assert {tuple(tiles[index].shape) for index in range(40)} == {(3, 12, 12)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_deleted_shard_is_a_damaged_tile(tmp_path):
    write_tar(tmp_path / "t.tar", [("0.png", encode_image(random_array((12, 12, 3), "uint8")))])
    tiles = tiles_of(tmp_path / "t.tar")
    (tmp_path / "t.tar").unlink()
    with pytest.raises(DamagedTile, match=r"^cannot be read \(No such file or directory\): 0 in .*t.tar$"):
        tiles[0]
