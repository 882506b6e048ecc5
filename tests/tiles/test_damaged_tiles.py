"""Damaged tiles are replaced by the next readable one, the same on every rank; they are listed; too many stop a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.loader_tiles import all_views, flat_tiles, flat_values, plain_recipe, write_tiles
from support.recipes import small_recipe

from moco_accel.images.headers import DamagedTile
from moco_accel.tiles.damaged_tiles import DAMAGED_TILES_FILE, DamageLog, max_damaged_tiles, read_or_replace

BAD = {3: "cannot be decoded", 4: "holds NaN", 9: "has 2 bands"}


def read(index: int) -> int:
    if index in BAD:
        raise DamagedTile(BAD[index])
    return index


def test_the_next_readable_tile_replaces_a_damaged_one() -> None:
    assert read_or_replace(read, 2, 10, max_damaged=5) == (2, [])
    assert read_or_replace(read, 3, 10, max_damaged=5) == (5, [(3, BAD[3]), (4, BAD[4])])
    assert read_or_replace(read, 9, 10, max_damaged=5) == (0, [(9, BAD[9])])  # after the last comes the first
    assert read_or_replace(read, 3, 10, max_damaged=1) == (None, [(3, BAD[3]), (4, BAD[4])])


def test_search_ends_if_all_tiles_are_damaged() -> None:
    recipe = small_recipe(data={"max_damaged_share": 1.0})
    assert max_damaged_tiles(recipe, 10) == 9

    def never(index: int) -> int:
        raise DamagedTile("is empty")

    found, damaged = read_or_replace(never, 4, 10, max_damaged_tiles(recipe, 10))
    assert found is None
    assert sorted(index for index, _ in damaged) == list(range(10))


def test_each_damaged_tile_is_counted_once_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_recipe(data={"max_damaged_share": 0.03})
    log = DamageLog(recipe, 100, tmp_path, resumed=False, first=True)
    log.add([(3, BAD[3]), (3, BAD[3])])
    log.add([(9, BAD[9]), (3, BAD[3])])
    log.add([])
    assert len(log) == 2
    rows = [json.loads(row) for row in (tmp_path / DAMAGED_TILES_FILE).read_text().splitlines()]
    assert rows == [{"tile": 3, "reason": BAD[3]}, {"tile": 9, "reason": BAD[9]}]
    assert capsys.readouterr().err.count("the next readable tile replaces it") == 1

    resumed = DamageLog(recipe, 100, tmp_path, resumed=True, first=True)
    assert len(resumed) == 2
    resumed.add([(4, BAD[4])])
    assert not resumed.too_many
    resumed.add([(5, "is empty")])
    assert resumed.too_many
    message = resumed.explain()
    assert message.startswith(
        "data.max_damaged_share=0.03 allows 3 damaged tiles of 100 in data.source='data/tiles', and 4"
    )
    assert message.endswith("data.max_damaged_share=0.08 continues")
    assert "\n" not in message
    assert len((tmp_path / DAMAGED_TILES_FILE).read_text().splitlines()) == 4

    assert len(DamageLog(recipe, 100, tmp_path, resumed=False, first=True)) == 0
    assert not (tmp_path / DAMAGED_TILES_FILE).exists()  # a new run starts an empty list


def test_processes_count_together(tmp_path: Path) -> None:
    """Three of a thousand are allowed: no process meets more than two, but the run stops at the fourth."""
    recipe = small_recipe(data={"max_damaged_share": 0.003})
    logs = [DamageLog(recipe, 1000, tmp_path, resumed=False, first=rank == 0) for rank in range(4)]
    for index, log in enumerate(logs[:3]):
        log.add([(index, "is empty")])
    logs[3].add([(0, "is empty")])  # listed by another process
    assert not logs[3].too_many
    logs[3].add([(7, "is empty")])
    assert logs[3].too_many
    assert "allows 3 damaged tiles of 1000 in data.source='data/tiles', and 4 were found" in logs[0].explain()
    rows = (tmp_path / DAMAGED_TILES_FILE).read_text().splitlines()
    assert [json.loads(row)["tile"] for row in rows] == [0, 1, 2, 7]


def test_truncated_row_of_a_killed_process_is_ignored(tmp_path: Path) -> None:
    recipe = small_recipe(data={"max_damaged_share": 0.1})
    (tmp_path / DAMAGED_TILES_FILE).write_text('{"tile": 3, "reason": "is empty"}\n{"tile": 4, "rea')
    log = DamageLog(recipe, 100, tmp_path, resumed=True, first=True)
    log.add([(5, "is empty")])
    log.add([(6, "is empty")])
    assert len(log) == 3
    assert (
        len(DamageLog(recipe, 100, tmp_path, resumed=True, first=True)) == 2
    )  # the row of 5 was appended to the truncated row


def test_replacements_are_the_same_for_workers_ranks_and_resumed_runs(tmp_path: Path) -> None:
    """Four of forty tiles are damaged, two of them adjacent: every process makes the same views of the same steps."""
    tiles = flat_tiles(40)
    for index, raw in ((7, b""), (8, b"junk"), (20, tiles[20][:50]), (39, b"\xff\xd8\xff")):
        tiles[index] = raw
    data = {"source": write_tiles(tmp_path / "tiles", tiles), "max_damaged_share": 0.2}
    whole = all_views(plain_recipe(data=data | {"num_workers": 0}), tmp_path / "run")
    assert set(flat_values(whole)) == set(range(40)) - {7, 8, 20, 39}
    for workers in (1, 3):
        assert torch.equal(all_views(plain_recipe(data=data | {"num_workers": workers}), tmp_path / "run"), whole)
    for step in (3, 5, 8):  # in the first epoch, at the start of the second, within it
        assert torch.equal(all_views(plain_recipe(data=data), tmp_path / "run", first_step=step), whole[step:])
    two = plain_recipe(data=data, hardware={"num_devices": 2}, batch={"micro_batch_size": 2, "accumulation_steps": 2})
    shares = [all_views(two, tmp_path / "two", rank).flatten(2, 3) for rank in (0, 1)]
    assert torch.equal(torch.cat(shares, 2), whole.flatten(2, 3))
    rows = [json.loads(row) for row in (tmp_path / "two" / DAMAGED_TILES_FILE).read_text().splitlines()]
    listed = {row["tile"]: row["reason"] for row in rows}
    assert sorted(listed) == [7, 8, 20, 39]
    assert all(reason.endswith(f"row {index} of {tmp_path}/tiles/part-0.parquet") for index, reason in listed.items())
