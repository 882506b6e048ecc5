"""The order of tiles: each once per epoch, the same for any number of processes, also with uneven shards."""

from __future__ import annotations

import pytest
import torch
from support.recipes import small_recipe

from moco_accel.common.errors import UserError
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.base import ReadPattern
from moco_accel.tiles.sampler import MicroBatchSampler, epoch_order, steps_per_epoch

UNEVEN = ReadPattern(units=[1, 0, 17, 3, 9, 2, 8], window=10)  # 40 tiles


def all_tiles(
    recipe: Recipe, rank: int = 0, first_step: int = 0, read_pattern: ReadPattern | None = None
) -> list[tuple[int, int]]:
    sampler = MicroBatchSampler(recipe, 40, rank, first_step, read_pattern)
    return [tile for micro_batch in sampler for tile in micro_batch]


@pytest.mark.parametrize("read_pattern", [None, UNEVEN])
def test_every_tile_once_per_epoch(read_pattern: ReadPattern | None) -> None:
    tiles = all_tiles(small_recipe(), read_pattern=read_pattern)
    assert len(tiles) == 2 * 40
    for epoch in (0, 1):
        assert sorted(tile for e, tile in tiles if e == epoch) == list(range(40))
    assert [tile for _, tile in tiles[:40]] != [tile for _, tile in tiles[40:]]


@pytest.mark.parametrize("read_pattern", [None, UNEVEN])
@pytest.mark.parametrize(("devices", "micro_batch", "steps"), [(2, 2, 2), (4, 1, 2), (8, 1, 1), (2, 4, 1)])
def test_processes_share_each_step(
    read_pattern: ReadPattern | None, devices: int, micro_batch: int, steps: int
) -> None:
    alone = all_tiles(small_recipe(batch={"micro_batch_size": 8, "accumulation_steps": 1}), read_pattern=read_pattern)
    batch = {"micro_batch_size": micro_batch, "accumulation_steps": steps}
    recipe = small_recipe(hardware={"num_devices": devices}, batch=batch)
    shares = [all_tiles(recipe, rank, read_pattern=read_pattern) for rank in range(devices)]
    each = 8 // devices
    for step in range(10):
        together = [tile for share in shares for tile in share[step * each : (step + 1) * each]]
        assert together == alone[step * 8 : step * 8 + 8]
    assert {len(share) for share in shares} == {80 // devices}  # no process ends early because of uneven shards


@pytest.mark.parametrize("read_pattern", [None, UNEVEN])
@pytest.mark.parametrize("first_step", [1, 4, 5, 7])
def test_a_resumed_run_continues_the_order(first_step: int, read_pattern: ReadPattern | None) -> None:
    """Also within a window: there is no shuffle buffer to lose."""
    whole = all_tiles(small_recipe(), read_pattern=read_pattern)
    assert all_tiles(small_recipe(), first_step=first_step, read_pattern=read_pattern) == whole[first_step * 8 :]


def test_windowed_order_reads_each_unit_in_one_window() -> None:
    read_pattern = ReadPattern(units=[64] * 300 + [10] * 30, window=1024)
    total = sum(read_pattern.units)
    order = epoch_order(3, 5, total, read_pattern)
    assert torch.equal(order.sort().values, torch.arange(total))
    unit_of = torch.repeat_interleave(torch.arange(330), torch.tensor(read_pattern.units))
    first_seen, last_seen = {}, {}
    for position, unit in enumerate(unit_of[order].tolist()):
        first_seen.setdefault(unit, position)
        last_seen[unit] = position
    # a window of 1,024 tiles plus its last unit
    assert max(last_seen[unit] - first_seen[unit] for unit in first_seen) < 1024 + 64
    held = [sum(first_seen[u] <= p <= last_seen[u] for u in first_seen) for p in range(0, total, 97)]
    assert max(held) <= 2 * (1024 // 10)  # of the 330 units


def test_windowed_order_is_shuffled_within_and_across_windows() -> None:
    read_pattern = ReadPattern(units=[64] * 300, window=1024)
    first, second = (epoch_order(0, epoch, 19_200, read_pattern) for epoch in (0, 1))
    assert len(torch.unique(first[:1024] // 64)) >= 16
    neighbours = ((first[1:] - first[:-1]) == 1).float().mean().item()
    assert neighbours < 0.01  # 1 in 1,024 by chance
    assert len(set(first[:1024].tolist()) & set(second[:1024].tolist())) < 300  # 55 by chance, in units of 64


def test_too_few_tiles_are_refused_with_a_batch_that_works() -> None:
    assert steps_per_epoch(small_recipe(), 47) == 5
    with pytest.raises(UserError, match=r"more than the 7 tiles .* batch.global_batch_size=4 works"):
        steps_per_epoch(small_recipe(), 7)
