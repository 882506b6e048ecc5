"""Which tile when: every tile once, the same on any number of processes and after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import small_recipe

from moco_accel.data import MicroBatchPlaces, open_training_tiles, step_views, steps_per_epoch
from moco_accel.recipe_text import RecipeError


def all_places(recipe: object, rank: int = 0, first_step: int = 0) -> list[tuple[int, int]]:
    return [place for micro in MicroBatchPlaces(recipe, 40, rank, first_step) for place in micro]  # type: ignore[arg-type]


def test_every_tile_once_per_epoch() -> None:
    places = all_places(small_recipe())
    assert len(places) == 2 * 40
    for epoch in (0, 1):
        assert sorted(tile for e, tile in places if e == epoch) == list(range(40))
    assert [tile for _, tile in places[:40]] != [tile for _, tile in places[40:]]


def test_processes_share_each_step() -> None:
    alone = all_places(small_recipe(batch={"micro_batch_size": 8, "accumulation_steps": 1}))
    two = small_recipe(hardware={"num_devices": 2}, batch={"micro_batch_size": 2, "accumulation_steps": 2})
    shares = [all_places(two, rank) for rank in (0, 1)]
    for step in range(10):
        together = shares[0][step * 4 : step * 4 + 4] + shares[1][step * 4 : step * 4 + 4]
        assert together == alone[step * 8 : step * 8 + 8]


@pytest.mark.parametrize("first_step", [1, 4, 5, 7])
def test_a_resume_goes_on_where_it_was(first_step: int) -> None:
    assert all_places(small_recipe(), first_step=first_step) == all_places(small_recipe())[first_step * 8 :]


def test_too_few_tiles_is_an_error_with_a_batch_that_works() -> None:
    assert steps_per_epoch(small_recipe(), 47) == 5
    with pytest.raises(RecipeError, match=r"more than the 7 tiles .* batch.global_batch_size=4 works"):
        steps_per_epoch(small_recipe(), 7)


def test_views_do_not_depend_on_workers(tiles_folder: Path) -> None:
    views = {}
    for workers in (0, 2):
        recipe = small_recipe(data={"source": str(tiles_folder), "num_workers": workers})
        steps = list(step_views(open_training_tiles(recipe), recipe, torch.device("cpu"), 0, 8))
        assert len(steps) == 2
        views[workers] = torch.stack([micro for pair in steps for view in pair for micro in view])
    assert torch.equal(views[0], views[2])
    assert views[0].shape == (8, 4, 3, 16, 16)
    assert not torch.equal(views[0][0], views[0][2])  # view 1 and view 2 of the same tiles
