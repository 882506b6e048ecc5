"""Parquet shards that are read in place by row group."""

import gc
import pickle
import re
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.source_files import error_message, random_array, tiles_of, write_array_shards, write_tar
from support.tile_files import npy
from torch.utils.data import DataLoader

from moco_accel.images.headers import DamagedTile
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.base import ReadPattern
from moco_accel.tiles.sampler import epoch_order
from moco_accel.tiles.tiles import open_tiles


def test_streamed_tiles_equal_cached_tiles_in_any_order(many_row_groups):
    folder, arrays = many_row_groups
    cached, streamed = tiles_of(folder), tiles_of(folder, streaming=True)
    assert len(cached.shard_sizes) > 2
    assert cached.shard_sizes == streamed.shard_sizes
    for index in np.random.default_rng(0).permutation(300):
        assert torch.equal(streamed[index], cached[index])
        assert np.array_equal(streamed[index].numpy(), arrays[index])
    assert streamed.column("name") == cached.column("name")


def test_streaming_stays_within_its_buffer(tmp_path):
    arrays = random_array((1024, 3, 64, 64), "uint8")  # 12 MiB in row groups of 64, of 0.8 MiB each
    write_array_shards(arrays, tmp_path / "t")
    gc.collect()  # memory of earlier tests, freed later, would be subtracted
    before, most = pa.total_allocated_bytes(), 0
    tiles = tiles_of(tmp_path / "t", streaming=True, shuffle_buffer_mib=3)
    for index in np.random.default_rng(0).permutation(1024)[:80]:
        assert np.array_equal(tiles[index].numpy(), arrays[index])
        most = max(most, pa.total_allocated_bytes() - before)
    assert 2 << 20 < most <= 3 << 20
    assert not (tmp_path / "cache").exists()


def test_several_workers_read_the_same_files(many_row_groups, tmp_path):
    folder, arrays = many_row_groups
    write_tar(tmp_path / "t.tar", [(f"{i}.npy", npy(a)) for i, a in enumerate(arrays)])
    for source in (folder, f"file://{folder}/*.parquet", tmp_path / "t.tar"):
        tiles = tiles_of(source, streaming=True)
        tiles[0]  # opens files before the workers fork
        order = np.random.default_rng(1).permutation(300).tolist()
        loader = DataLoader(tiles, batch_size=10, sampler=order, num_workers=2)
        assert np.array_equal(torch.cat(list(loader)).numpy(), arrays[order])


def test_damaged_row_group(many_row_groups):
    folder, arrays = many_row_groups
    path = sorted(folder.glob("*.parquet"))[1]
    column = pq.read_metadata(path).row_group(0).column(0)
    raw = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    raw[start : start + 2000] = b"\xff" * 2000
    path.write_bytes(raw)
    tiles = tiles_of(folder, streaming=True)
    with pytest.raises(DamagedTile, match=r"^lies in a row group that cannot be read \(.*: row 0 of .*parquet$"):
        tiles[64]
    for index in (0, 63, 128, 299):
        assert np.array_equal(tiles[index].numpy(), arrays[index])


def test_shards_with_different_columns_are_refused(many_row_groups):
    folder, _ = many_row_groups
    write_array_shards(np.zeros((1, 9, 9, 3), np.uint8), folder / "x")
    next((folder / "x").glob("*.parquet")).rename(folder / "other.parquet")
    for streaming in (False, True):
        assert "its shards have different columns" in error_message(folder, streaming=streaming)


def test_only_streamed_shards_have_read_units(tmp_path):
    arrays = random_array((200, 3, 64, 64), "uint8")
    write_array_shards(arrays, tmp_path / "t")
    assert tiles_of(tmp_path / "t").read_pattern == ReadPattern()
    pattern = tiles_of(tmp_path / "t", streaming=True, shuffle_buffer_mib=2).read_pattern
    assert pattern.units == [64, 64, 64, 8]
    # three quarters of 2 MiB minus a unit, divided by 12,288 bytes a tile and 4 for each of 1 + 3 + 3 * 64 lists
    assert pattern.window == (1.5 * 1024**2 - 64 * 13_072) // 13_072 == 56
    assert tiles_of(tmp_path / "t", streaming=True, shuffle_buffer_mib=9).read_pattern.window == 200
    assert open_tiles(str(tmp_path / "t"), Data(streaming=True), None).read_pattern == ReadPattern()


def write_row_groups(path, rows, tile, kind):
    """Write a parquet file whose row groups have `rows` tiles."""
    if kind == "encoded":
        feature, values = datasets.Value("binary"), [npy(array) for array in random_array((sum(rows), *tile), "uint8")]
    else:  # parquet compresses constant tiles to almost nothing
        feature = datasets.Array3D(tile, "uint8")
        values = [np.full(tile, index % 251, np.uint8) for index in range(sum(rows))]
    table = datasets.Dataset.from_dict({"image": values}, features=datasets.Features({"image": feature})).data.table
    ends = np.cumsum(rows)
    with pq.ParquetWriter(path, table.schema) as writer:
        for count, end in zip(rows, ends, strict=True):
            writer.write_table(table.slice(end - count, count), row_group_size=count)


CASES = {"uneven": [10, 1, 30, 5, 45, 2, 20, 3, 40, 7, 25, 10]}
CASES |= {f"{share:.2f}": [round(share * 85)] * round(4 / share) for share in (0.05, 0.2, 0.3, 0.37, 0.5, 0.7)}


@pytest.mark.parametrize("kind", ["encoded", "array"])
@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_each_row_group_is_read_once_per_epoch(tmp_path, monkeypatch, rows, kind):
    """Row groups take 5 to 70 % of the buffer of 1 MiB, which holds 85 tiles of 12 KiB."""
    path = tmp_path / "t.parquet"
    write_row_groups(path, rows, (3, 64, 64), kind)
    tiles = tiles_of(path, streaming=True, shuffle_buffer_mib=1)
    reads, held = Counter(), []
    read_row_group = pq.ParquetFile.read_row_group

    def counted(file, number, **kwargs):
        reads[number] += 1
        table = read_row_group(file, number, **kwargs)
        held.append(pa.total_allocated_bytes() - before)
        return table

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    tiles = pickle.loads(pickle.dumps(tiles))  # as in a loader worker
    gc.collect()
    before = pa.total_allocated_bytes()
    for epoch in (0, 1):
        reads.clear()
        order = epoch_order(0, epoch, len(tiles), tiles.read_pattern).tolist()
        for index in order:
            tiles[index]
        assert max(reads.values()) == 1, reads
        assert epoch or len(reads) == len(rows)  # the next epoch may reuse the last row groups
    # arrays take the estimated bytes; for encoded tiles pyarrow reserves up to half as much again
    assert max(held) <= (1.01 if kind == "array" else 1.7) * 2**20  # worst measured: 1.0001, 1.49


@pytest.mark.parametrize(("side", "size"), [(100, 1.9), (128, 3.1)])
def test_recommended_buffer_works(tmp_path, side, size):
    write_array_shards(random_array((64, 3, side, side), "uint8"), tmp_path)
    message = error_message(tmp_path, streaming=True, shuffle_buffer_mib=1)
    wanted = int(re.search(r"data.shuffle_buffer_mib=(\d+) works", message)[1])
    assert message == (
        f"data.shuffle_buffer_mib=1 is less than a row group of '{tmp_path}', of {size} MiB; "
        f"data.shuffle_buffer_mib={wanted} works, or data.streaming=false"
    )
    assert tiles_of(tmp_path, streaming=True, shuffle_buffer_mib=wanted).read_pattern.window >= 64
