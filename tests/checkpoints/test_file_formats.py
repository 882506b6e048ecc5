"""The files of a run keep their names and keys, so that a run begun with an earlier version resumes."""

from __future__ import annotations

import json
from pathlib import Path

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
    assert formats_of(tmp_path / "run") == json.loads(FORMATS.read_text())
