"""The files of a run keep their names and keys, so that a run begun with an earlier version resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.formats import formats_of
from support.recipes import small_recipe
from support.tile_files import write_labelled
from support.trainer_processes import train

from moco_accel.recipe.load import save_recipe

FORMATS = Path(__file__).parents[1] / "fixtures" / "formats.json"  # as version 0.1.0 wrote them


def test_files_of_a_run_keep_their_names_and_keys(tmp_path: Path) -> None:
    sources = {}
    for side in ("train", "test"):
        write_labelled(tmp_path / side, 24, 24)
        sources[f"{side}_source"] = str(tmp_path / side)
    recipe = small_recipe(
        moco={"queue_size": 16},
        data={"source": str(tmp_path / "train")},
        evaluation=sources,
        run={"log_every_steps": 1, "checkpoint_every_steps": 2},
    )
    save_recipe(recipe, tmp_path / "recipe.yaml")
    train(tmp_path / "recipe.yaml", tmp_path / "run")
    assert find_lost(json.loads(FORMATS.read_text()), formats_of(tmp_path / "run")) == []


def find_lost(before: Any, now: Any, place: str = "") -> list[str]:
    """Return what an earlier version wrote and this one does not, or as another type; keys may be added."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [lost for key in before for lost in find_lost(before[key], now.get(key), f"{place}/{key}")]
    return [] if before == now else [f"{place}: {before} before, {now} now"]
