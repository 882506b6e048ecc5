"""Names that are not valid UTF-8: read, printed, and listed as damaged tiles."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from support.recipes import small_recipe
from support.source_files import encode_image, error_message, random_array, tiles_of, write_file, write_tar

from moco_accel.images.headers import DamagedTile
from moco_accel.tiles.damaged_tiles import DamageLog

ARRAYS = random_array((3, 12, 12, 3), "uint8")
NAME = os.fsdecode(b"zz\xe9.png")


def test_files_and_folders(tmp_path, capfd):
    folder = tmp_path / os.fsdecode(b"d\xff")
    for number, array in enumerate(ARRAYS):
        write_file(folder / os.fsdecode(b"c\xe9" if number else b"a") / f"{number}{NAME}", encode_image(array))
    write_file(folder / "masks" / NAME, encode_image(ARRAYS[0, :, :, 0]))
    tiles = tiles_of(folder)
    assert "1 image with the names of masks is left out, e.g. masks/zz" in capfd.readouterr().err
    assert tiles.labels("label") == ([0, 1, 1], ["a", "c\udce9"])
    assert np.array_equal(tiles[2].numpy(), ARRAYS[2].transpose(2, 0, 1))
    assert len(tiles.digest) == 16
    write_file(folder / "a" / f"0{NAME}", b"junk")
    with pytest.raises(DamagedTile) as reason:
        tiles[0]
    log = DamageLog(small_recipe(), 3, tmp_path / "run", resumed=False, first=True)
    log.add([(0, str(reason.value))])
    assert ".png; the next readable tile replaces it" in capfd.readouterr().err
    rows = (tmp_path / "run" / "damaged_tiles.jsonl").read_bytes().decode()
    assert json.loads(rows)["reason"].endswith(f"/a/0{NAME}")
    assert len(DamageLog(small_recipe(), 3, tmp_path / "run", resumed=True, first=True)) == 1


def test_shards_and_members_of_tars(tmp_path, capfd):
    shard = tmp_path / os.fsdecode(b"s\xe9.tar")
    write_tar(shard, [(NAME, encode_image(ARRAYS[0])), (os.fsdecode(b"\xe9.xml"), b"x")])
    tiles = tiles_of(tmp_path)
    assert tiles.column("__key__") == ["zz\udce9"]
    assert "left out: 1 .xml; e.g. " in capfd.readouterr().err
    shard.unlink()
    with pytest.raises(DamagedTile, match=r"zz\udce9 in .*s\udce9.tar$"):
        tiles[0]
    write_file(tmp_path / os.fsdecode(b"p\xe9.parquet"), b"junk")
    assert "p\udce9.parquet" in error_message(tmp_path)
