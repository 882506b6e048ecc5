"""`--resume`: to the bit, however often; wherever it runs; never with other science unless told so."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.interruptions import StopBefore
from support.recipes import small_recipe
from typer.testing import CliRunner

from moco_accel.checkpoints import saver
from moco_accel.checkpoints.checkpoint import FILES, STATE, check_checkpoint
from moco_accel.checkpoints.manifest import MANIFEST
from moco_accel.checkpoints.resume_rules import changed_science, check_changes, keep_healed_micro_batch
from moco_accel.common.errors import UserError
from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.recipe.schema import Recipe
from moco_accel.train import app
from moco_accel.training.loop import run_training


def quick(tiles: Path, **sections: dict[str, Any]) -> Recipe:
    """5 steps an epoch, 2 epochs; two loader workers."""
    fields: dict[str, dict[str, Any]] = {
        "encoder": {"name": "resnet10", "image_size": 32, "freeze_patch_projection": False},
        "data": {"source": str(tiles), "num_workers": 2},
        "moco": {"queue_size": 16},
        "run": {"log_every_steps": 1, "checkpoint_every_steps": 1000},
    }
    return small_recipe(**{name: fields.get(name, {}) | sections.get(name, {}) for name in {**fields, **sections}})


def rows(run: Path) -> list[tuple[int, float]]:
    found = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in found]


def train(recipe: Recipe, run: Path, stop_after: int = 1000, resume: bool = True, allow: bool = False) -> None:
    torch.rand(7)  # whatever a process has drawn before is not the run's
    run_training(recipe, run, resume, StopBefore(stop_after), allow)


def test_a_run_stopped_in_the_midst_of_epochs_ends_with_the_same_bytes(tiles_folder: Path, tmp_path: Path) -> None:
    """Stopped after 2, 3, 4, 4 and 8 of 10 steps; every file of the last checkpoint, and every row."""
    recipe = quick(tiles_folder, optimizer={"name": "adamw_8bit"})
    train(recipe, tmp_path / "whole", resume=False)
    for steps in (2, 1, 1, 0, 4, 1000):
        train(recipe, tmp_path / "stopped", steps)
    last = [tmp_path / run / "checkpoints" / "step_00000010" for run in ("whole", "stopped")]
    for name in (*FILES, MANIFEST):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes(), name
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert [step for step, _ in rows(tmp_path / "whole")] == list(range(10))


def test_a_run_goes_on_in_other_micro_batches(tiles_folder: Path, tmp_path: Path) -> None:
    """A ViT's micro-batches are a matter of memory: 2 × 4 tiles, then 4 × 2."""
    vit = {"encoder": {"name": "vit_tiny_patch8", "image_size": 16}, "schedule": {"epochs": 1, "warmup_epochs": 0}}
    recipe = quick(tiles_folder, **vit)
    train(recipe, tmp_path / "whole", resume=False)
    train(recipe, tmp_path / "other", 2)
    smaller = quick(tiles_folder, **vit, batch={"micro_batch_size": 2, "accumulation_steps": 4})
    train(smaller, tmp_path / "other")
    for (step, loss), (other_step, other) in zip(rows(tmp_path / "whole"), rows(tmp_path / "other"), strict=True):
        assert step == other_step
        assert other == pytest.approx(loss, rel=1e-5)


def test_minutes_ask_for_a_checkpoint_and_change_nothing(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick(tiles_folder, schedule={"epochs": 1, "warmup_epochs": 0}, run={"keep_checkpoints": 9})
    train(recipe, tmp_path / "whole", resume=False)
    clock = time.monotonic
    monkeypatch.setattr(saver, "_SECONDS", 1e-9)  # a minute is over before every step
    train(recipe, tmp_path / "often", resume=False)
    assert time.monotonic is clock
    assert len(list((tmp_path / "whole" / "checkpoints").iterdir())) == 1
    assert sorted(path.name for path in (tmp_path / "often" / "checkpoints").iterdir()) == [
        f"step_{step:08d}" for step in (1, 2, 3, 4, 5)
    ]
    last = [tmp_path / run / "checkpoints" / "step_00000005" for run in ("whole", "often")]
    for name in (*FILES, MANIFEST):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes(), name


def test_resume_is_right_for_a_job_that_is_always_started_with_it(tiles_folder: Path, tmp_path: Path) -> None:
    """The first time, after a kill before the first checkpoint, in the midst, and when all is done."""
    save_recipe(quick(tiles_folder, schedule={"epochs": 1, "warmup_epochs": 0}), tmp_path / "quick.yaml")
    run = tmp_path / "run"
    arguments = ["--recipe", str(tmp_path / "quick.yaml"), "--output-dir", str(run), "--resume"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.stderr
    assert "holds no checkpoint yet; the run starts from the beginning" in first.stderr
    summary = (run / "summary.json").read_bytes()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0
    assert "is done: 5 steps of 5; nothing is left to resume" in again.stderr
    assert (run / "summary.json").read_bytes() == summary
    (run / "summary.json").unlink()  # killed between the last checkpoint and the summary
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 5
    assert [step for step, _ in rows(run)] == list(range(5))


def test_metrics_of_steps_that_are_done_again_are_there_once(tiles_folder: Path, tmp_path: Path) -> None:
    """A killed run has logged steps that no checkpoint holds, and half a row."""
    recipe = quick(tiles_folder)
    train(recipe, tmp_path / "run", 3, resume=False)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 3, "loss": 1}\n{"step": 4, "loss": 2}\n{"st')
    train(recipe, tmp_path / "run", 2)
    assert [step for step, _ in rows(tmp_path / "run")] == [0, 1, 2, 3, 4]
    assert all(loss not in (1, 2) for _, loss in rows(tmp_path / "run"))


def test_other_library_versions_are_said(
    tiles_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick(tiles_folder)
    now = saver.versions()
    monkeypatch.setattr(saver, "versions", lambda: now | {"torch": "2.11.0"})
    train(recipe, tmp_path / "run", 1, resume=False)
    capsys.readouterr()
    train(recipe, tmp_path / "run", 0)
    said = capsys.readouterr().err
    assert f"other versions than the checkpoint's: torch {now['torch']} (was 2.11.0); the run goes on" in said


SCIENCE = {
    "encoder": {"image_size": 64},
    "moco": {"temperature": 0.3},
    "batch": {"contrast_over": "micro_batch"},
    "optimizer": {"weight_decay": 0.2},
    "schedule": {"epochs": 3},
    "memory": {"mixed_precision": "bf16"},
    "augment": {"hue": 0.0},
    "data": {"streaming": True},
    "run": {"seed": 1},
}


@pytest.mark.parametrize("section", SCIENCE)
def test_changed_science_is_refused_by_name_unless_allowed(section: str) -> None:
    (field, value), before = next(iter(SCIENCE[section].items())), small_recipe()
    changes = changed_science(small_recipe(**{section: {field: value}}), before)
    assert [name for name, _, _ in changes] == [f"{section}.{field}"]
    with pytest.raises(UserError, match=f"^{section}.{field}=.* differs from the run's .*--allow-recipe-change"):
        check_changes(changes, False, print)
    said: list[str] = []
    check_changes(changes, True, said.append)
    assert len(said) == 1
    assert f"--allow-recipe-change: {section}.{field}={value!r} from here on; it was" in said[0]


def test_where_a_run_computes_is_free() -> None:
    where = small_recipe(
        batch={"micro_batch_size": 2, "accumulation_steps": 2},
        hardware={"num_devices": 2, "gpu": "x", "vram_gib": 8},
        memory={"activation_checkpointing": True, "keep_last_micro_batch": False},
        data={"num_workers": 5, "max_damaged_share": 0.5},
        run={"checkpoint_every_minutes": None, "keep_checkpoints": 7},
        evaluation={"train_source": "x"},
    )
    assert changed_science(where, small_recipe()) == []


@pytest.mark.parametrize("sections", [{"encoder": {"name": "resnet10"}}, {"batch": {"contrast_over": "micro_batch"}}])
def test_micro_batches_that_decide_the_result_are_science(sections: dict[str, dict[str, Any]]) -> None:
    before = small_recipe(**sections)
    smaller = {"micro_batch_size": 2, "accumulation_steps": 4}
    changes = changed_science(small_recipe(**{**sections, "batch": sections.get("batch", {}) | smaller}), before)
    assert [name for name, _, _ in changes] == ["batch.micro_batch_size"]
    two = {"batch": sections.get("batch", {}) | {"accumulation_steps": 1}, "hardware": {"num_devices": 2}}
    changes = changed_science(small_recipe(**{**sections, **two}), before)
    expected = ["hardware.num_devices"] if "batch" in sections else []
    assert [name for name, _, _ in changes] == expected


def test_what_the_saved_state_does_not_fit_is_never_allowed() -> None:
    with pytest.raises(UserError, match="queue_size=8 differs from the run's 0, and what the run has saved fits no"):
        check_changes(changed_science(small_recipe(moco={"queue_size": 8}), small_recipe()), True, print)


def test_a_run_that_was_healed_goes_on_healed() -> None:
    """Started again as it was: smaller. With a micro-batch of the user's own: that."""
    asked, healed = small_recipe(), small_recipe(batch={"micro_batch_size": 1, "accumulation_steps": 8})
    said: list[str] = []
    assert keep_healed_micro_batch(asked, healed, 4, said.append).batch == healed.batch
    assert said == ["batch.micro_batch_size=1, as the run found that 4 does not fit"]
    own = small_recipe(batch={"micro_batch_size": 2, "accumulation_steps": 4})
    assert keep_healed_micro_batch(own, healed, 4, said.append) is own
    assert keep_healed_micro_batch(asked, asked, 4, said.append) is asked


def test_allowed_changes_take_effect(tiles_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of what an optimizer keeps in its groups, too, which are the recipe's and not the checkpoint's."""
    train(quick(tiles_folder), tmp_path / "run", 2, resume=False)
    shutil.copytree(tmp_path / "run", tmp_path / "changed")
    changed = quick(tiles_folder, optimizer={"weight_decay": 0.7}, schedule={"epochs": 1, "warmup_epochs": 0})
    with pytest.raises(UserError, match=r"weight_decay=0.7 .*\(as would schedule.epochs, schedule.warmup_epochs\)"):
        train(changed, tmp_path / "changed")
    train(changed, tmp_path / "changed", allow=True)
    assert "--allow-recipe-change: optimizer.weight_decay=0.7 from here on; it was 0.1" in capsys.readouterr().err
    last = check_checkpoint(tmp_path / "changed" / "checkpoints" / "step_00000005")
    assert last.recipe.optimizer.weight_decay == 0.7
    train(quick(tiles_folder), tmp_path / "run", 3)
    ends = [rows(tmp_path / run)[-1][1] for run in ("run", "changed")]
    assert ends[0] != ends[1]


def test_state_says_what_a_checkpoint_is_of(tiles_folder: Path, tmp_path: Path) -> None:
    train(quick(tiles_folder), tmp_path / "run", 1, resume=False)
    state = json.loads((tmp_path / "run" / "checkpoints" / "step_00000001" / STATE).read_text())
    assert (state["step"], state["tile_count"], state["processes"], state["micro_batch_asked"]) == (1, 40, 1, 4)
    assert {"python", "torch", "bitsandbytes", "moco-accel"} <= set(state["versions"])
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == load_recipe(
        tmp_path / "run" / "checkpoints" / "step_00000001" / "recipe.yaml"
    )
