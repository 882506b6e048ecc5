"""Which tile when: every tile once, the same on any number of processes and workers, however uneven the shards."""

from __future__ import annotations

import pytest
import torch
from support.recipes import small_recipe

from moco_accel.common.errors import UserError
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.base import Reading
from moco_accel.tiles.order import MicroBatchPlaces, epoch_order, steps_per_epoch

UNEVEN = Reading(units=[1, 0, 17, 3, 9, 2, 8], window=10)  # 40 tiles


def all_places(
    recipe: Recipe, rank: int = 0, first_step: int = 0, reading: Reading | None = None
) -> list[tuple[int, int]]:
    return [place for micro in MicroBatchPlaces(recipe, 40, rank, first_step, reading) for place in micro]


@pytest.mark.parametrize("reading", [None, UNEVEN])
def test_every_tile_once_per_epoch(reading: Reading | None) -> None:
    places = all_places(small_recipe(), reading=reading)
    assert len(places) == 2 * 40
    for epoch in (0, 1):
        assert sorted(tile for e, tile in places if e == epoch) == list(range(40))
    assert [tile for _, tile in places[:40]] != [tile for _, tile in places[40:]]


@pytest.mark.parametrize("reading", [None, UNEVEN])
@pytest.mark.parametrize(("devices", "micro_batch", "steps"), [(2, 2, 2), (4, 1, 2), (8, 1, 1), (2, 4, 1)])
def test_processes_share_each_step(reading: Reading | None, devices: int, micro_batch: int, steps: int) -> None:
    alone = all_places(small_recipe(batch={"micro_batch_size": 8, "accumulation_steps": 1}), reading=reading)
    batch = {"micro_batch_size": micro_batch, "accumulation_steps": steps}
    recipe = small_recipe(hardware={"num_devices": devices}, batch=batch)
    shares = [all_places(recipe, rank, reading=reading) for rank in range(devices)]
    each = 8 // devices
    for step in range(10):
        together = [place for share in shares for place in share[step * each : (step + 1) * each]]
        assert together == alone[step * 8 : step * 8 + 8]
    assert {len(share) for share in shares} == {80 // devices}  # uneven shards let no process end early


@pytest.mark.parametrize("reading", [None, UNEVEN])
@pytest.mark.parametrize("first_step", [1, 4, 5, 7])
def test_a_resume_goes_on_where_it_was(first_step: int, reading: Reading | None) -> None:
    """Within a window too: no buffer is lost, for none exists."""
    whole = all_places(small_recipe(), reading=reading)
    assert all_places(small_recipe(), first_step=first_step, reading=reading) == whole[first_step * 8 :]


def test_a_local_order_reads_each_unit_in_one_window() -> None:
    reading = Reading(units=[64] * 300 + [10] * 30, window=1024)
    total = sum(reading.units)
    order = epoch_order(3, 5, total, reading)
    assert torch.equal(order.sort().values, torch.arange(total))
    unit_of = torch.repeat_interleave(torch.arange(330), torch.tensor(reading.units))
    first_seen, last_seen = {}, {}
    for position, unit in enumerate(unit_of[order].tolist()):
        first_seen.setdefault(unit, position)
        last_seen[unit] = position
    # a window of 1,024 tiles and the unit that begins in it
    assert max(last_seen[unit] - first_seen[unit] for unit in first_seen) < 1024 + 64
    held = [sum(first_seen[u] <= p <= last_seen[u] for u in first_seen) for p in range(0, total, 97)]
    assert max(held) <= 2 * (1024 // 10)  # units a reader must hold: far fewer than the 330 there are


def test_a_local_order_is_shuffled_within_and_across_windows() -> None:
    reading = Reading(units=[64] * 300, window=1024)
    first, second = (epoch_order(0, epoch, 19_200, reading) for epoch in (0, 1))
    assert len(torch.unique(first[:1024] // 64)) >= 16
    neighbours = ((first[1:] - first[:-1]) == 1).float().mean().item()
    assert neighbours < 0.01  # 1 in 1,024 by chance
    assert len(set(first[:1024].tolist()) & set(second[:1024].tolist())) < 300  # 55 by chance, in units of 64


def test_too_few_tiles_is_an_error_with_a_batch_that_works() -> None:
    assert steps_per_epoch(small_recipe(), 47) == 5
    with pytest.raises(UserError, match=r"more than the 7 tiles .* batch.global_batch_size=4 works"):
        steps_per_epoch(small_recipe(), 7)
