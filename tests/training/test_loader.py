"""Views of a step do not depend on loader workers, ranks, source or damaged tiles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.loader_tiles import CPU, all_views, flat_tiles, flat_values, plain_recipe, png, write_tiles
from support.recipes import small_recipe

from moco_accel.tiles.damaged_tiles import DAMAGED_TILES_FILE, DamageLog
from moco_accel.training.loader import TwoViewDataset, open_training_tiles, step_views


def test_views_do_not_depend_on_workers(tiles_folder: Path, tmp_path: Path) -> None:
    views = {}
    for workers in (0, 2):
        recipe = small_recipe(data={"source": str(tiles_folder), "num_workers": workers})
        views[workers] = all_views(recipe, tmp_path, first_step=8)
    assert torch.equal(views[0], views[2])
    assert views[0].shape == (2, 2, 2, 4, 3, 16, 16)
    assert not torch.equal(views[0][:, 0], views[0][:, 1])  # view 1 and view 2 of the same tiles


@pytest.mark.parametrize("streaming", [False, True])
def test_few_uneven_shards_feed_all_workers_and_ranks(tmp_path: Path, streaming: bool) -> None:
    """Three files for two ranks of three workers (datasets #8669): each tile comes once per epoch."""
    source = write_tiles(tmp_path / "tiles", flat_tiles(40), rows_in_shard=17)
    data = {"source": source, "num_workers": 3, "streaming": streaming}
    recipe = plain_recipe(
        data=data, hardware={"num_devices": 2}, batch={"micro_batch_size": 2, "accumulation_steps": 2}
    )
    shares = [all_views(recipe, tmp_path / "run", rank) for rank in (0, 1)]
    assert [len(share) for share in shares] == [10, 10]  # steps of two epochs
    seen = [[flat_values(share[steps]) for share in shares] for steps in (slice(0, 5), slice(5, 10))]
    for first, second in seen:
        assert sorted(first + second) == list(range(40))
    single = all_views(plain_recipe(data=data | {"num_workers": 1}), tmp_path / "run")
    joined = torch.cat([share.flatten(2, 3) for share in shares], 2)
    assert torch.equal(joined, single.flatten(2, 3))


def test_streaming_reads_the_same_tiles_in_another_order(tmp_path: Path) -> None:
    source = write_tiles(tmp_path / "tiles", flat_tiles(40), rows_in_shard=17)
    streamed = flat_values(all_views(plain_recipe(data={"source": source, "streaming": True}), tmp_path / "run"))
    prepared = flat_values(all_views(plain_recipe(data={"source": source}), tmp_path / "run"))
    assert sorted(streamed[:40]) == sorted(prepared[:40]) == list(range(40))
    assert streamed != prepared


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_tiles_are_replaced_counted_and_listed(
    tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = flat_tiles(40)
    tiles[7], tiles[8] = tiles[7][:60], png(np.zeros((4, 4, 3), np.uint8))
    source = write_tiles(tmp_path / "tiles", tiles)
    recipe = plain_recipe(data={"source": source, "num_workers": workers, "max_damaged_share": 0.05})
    seen = flat_values(all_views(recipe, tmp_path / "run"))
    assert sorted(seen[:40]) == sorted([*range(7), 9, 9, *range(9, 40)])
    rows = [json.loads(row) for row in (tmp_path / "run" / DAMAGED_TILES_FILE).read_text().splitlines()]
    assert sorted(row["tile"] for row in rows) == [7, 8]
    assert "wrong size" in next(row["reason"] for row in rows if row["tile"] == 8)
    assert capsys.readouterr().err.count("the next readable tile replaces it") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_damaged_tiles_end_the_views(tmp_path: Path, workers: int) -> None:
    tiles = flat_tiles(40)
    tiles[20:] = [b"not an image"] * 20
    recipe = plain_recipe(data={"source": write_tiles(tmp_path / "tiles", tiles), "num_workers": workers})
    opened = open_training_tiles(recipe)
    log = DamageLog(recipe, len(opened), tmp_path / "run", resumed=False, first=True)
    steps = list(step_views(opened, recipe, CPU, 0, 0, log))
    assert steps[-1] is None
    assert None not in steps[:-1]
    assert log.too_many
    assert "data.max_damaged_share=0.01 allows 0 damaged tiles of 40" in log.explain()


def test_paired_seasons_are_the_two_views(tmp_path: Path) -> None:
    source = write_tiles(tmp_path / "tiles", flat_tiles(40), flat_tiles(40, first=100))
    recipe = plain_recipe(data={"source": source, "image_column": "image", "pair_column": "image_pair"})
    views = all_views(recipe, tmp_path / "run")
    first, second = flat_values(views), flat_values(views.flip(1))
    assert all(abs(a - b) == 100 for a, b in zip(first, second, strict=True))
    swapped = sum(a > b for a, b in zip(first, second, strict=True)) / len(first)
    assert 0.3 < swapped < 0.7  # 80 draws
    assert views.shape[1] == 2


def test_replacement_of_a_damaged_tile_has_its_own_crops(tmp_path: Path) -> None:
    noise = [png(np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8)) for n in range(40)]
    noise[3] = b"broken"
    recipe = small_recipe(data={"source": write_tiles(tmp_path / "tiles", noise), "max_damaged_share": 0.1})
    dataset = TwoViewDataset(open_training_tiles(recipe), recipe)
    replacement, own = dataset[(0, 3)], dataset[(0, 4)]
    assert replacement.damaged[0][0] == 3
    assert replacement.crops is not None
    assert own.crops is not None
    assert not torch.equal(replacement.crops[0].pixels, own.crops[0].pixels)
