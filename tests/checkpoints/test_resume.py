"""`--resume`: bit-exact however often, and which changes of the recipe it allows."""

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
from moco_accel.checkpoints.checkpoint import FILES, STATE, verify_checkpoint
from moco_accel.checkpoints.manifest import MANIFEST
from moco_accel.checkpoints.resume_rules import check_changes, find_result_changes, keep_recovered_micro_batch
from moco_accel.checkpoints.run_log import read_rows
from moco_accel.common.errors import UserError
from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.recipe.schema import Recipe
from moco_accel.train import app
from moco_accel.training.run import run_training


def quick(tiles: Path, **sections: dict[str, Any]) -> Recipe:
    """Return a recipe of 2 epochs of 5 steps, with two loader workers."""
    fields: dict[str, dict[str, Any]] = {
        "encoder": {"name": "resnet10", "image_size": 32, "freeze_patch_projection": False},
        "data": {"source": str(tiles), "num_workers": 2},
        "moco": {"queue_size": 16},
        "run": {"log_every_steps": 1, "checkpoint_every_steps": 1000},
    }
    return small_recipe(**{name: fields.get(name, {}) | sections.get(name, {}) for name in {**fields, **sections}})


def logged_losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_rows(run / "metrics.jsonl")]


def train(recipe: Recipe, run: Path, stop_after: int = 1000, resume: bool = True, allow: bool = False) -> None:
    torch.rand(7)  # random numbers drawn before must not matter
    run_training(recipe, run, resume, StopBefore(stop_after), allow)


def test_an_interrupted_run_ends_with_the_same_bytes(tiles_folder: Path, tmp_path: Path) -> None:
    """Stop after 2, 3, 4, 4 and 8 of 10 steps; compare every file of the last checkpoint and every row."""
    recipe = quick(tiles_folder, optimizer={"name": "adamw_8bit"})
    train(recipe, tmp_path / "uninterrupted", resume=False)
    for steps in (2, 1, 1, 0, 4, 1000):
        train(recipe, tmp_path / "stopped", steps)
    last = [tmp_path / run / "checkpoints" / "step_00000010" for run in ("uninterrupted", "stopped")]
    for name in (*FILES, MANIFEST):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes(), name
    assert logged_losses(tmp_path / "stopped") == logged_losses(tmp_path / "uninterrupted")
    assert [step for step, _ in logged_losses(tmp_path / "uninterrupted")] == list(range(10))


def test_a_run_resumes_with_other_micro_batches(tiles_folder: Path, tmp_path: Path) -> None:
    """A ViT's micro-batches do not affect the result: 2 × 4 tiles, then 4 × 2."""
    vit = {"encoder": {"name": "vit_tiny_patch8", "image_size": 16}, "schedule": {"epochs": 1, "warmup_epochs": 0}}
    recipe = quick(tiles_folder, **vit)
    train(recipe, tmp_path / "uninterrupted", resume=False)
    train(recipe, tmp_path / "other", 2)
    smaller = quick(tiles_folder, **vit, batch={"micro_batch_size": 2, "accumulation_steps": 4})
    train(smaller, tmp_path / "other")
    for (step, loss), (other_step, other) in zip(
        logged_losses(tmp_path / "uninterrupted"), logged_losses(tmp_path / "other"), strict=True
    ):
        assert step == other_step
        assert other == pytest.approx(loss, rel=1e-5)


def test_checkpoints_by_minutes_do_not_change_the_result(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick(tiles_folder, schedule={"epochs": 1, "warmup_epochs": 0}, run={"keep_checkpoints": 9})
    train(recipe, tmp_path / "uninterrupted", resume=False)
    clock = time.monotonic
    monkeypatch.setattr(saver, "_SECONDS_PER_MINUTE", 1e-9)  # a checkpoint is due at every step
    train(recipe, tmp_path / "often", resume=False)
    assert time.monotonic is clock
    assert len(list((tmp_path / "uninterrupted" / "checkpoints").iterdir())) == 1
    assert sorted(path.name for path in (tmp_path / "often" / "checkpoints").iterdir()) == [
        f"step_{step:08d}" for step in (1, 2, 3, 4, 5)
    ]
    last = [tmp_path / run / "checkpoints" / "step_00000005" for run in ("uninterrupted", "often")]
    for name in (*FILES, MANIFEST):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes(), name


def test_a_job_can_always_pass_resume(tiles_folder: Path, tmp_path: Path) -> None:
    """Resume a new run, a finished run, and a run killed between its last checkpoint and its summary."""
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
    (run / "summary.json").unlink()  # as if killed before it was written
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 5
    assert [step for step, _ in logged_losses(run)] == list(range(5))


def test_repeated_steps_are_logged_once(tiles_folder: Path, tmp_path: Path) -> None:
    """A killed run has logged steps after its last checkpoint, and a partial row."""
    recipe = quick(tiles_folder)
    train(recipe, tmp_path / "run", 3, resume=False)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 3, "loss": 1}\n{"step": 4, "loss": 2}\n{"st')
    train(recipe, tmp_path / "run", 2)
    assert [step for step, _ in logged_losses(tmp_path / "run")] == [0, 1, 2, 3, 4]
    assert all(loss not in (1, 2) for _, loss in logged_losses(tmp_path / "run"))


def test_other_library_versions_are_reported(
    tiles_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick(tiles_folder)
    now = saver.library_versions()
    monkeypatch.setattr(saver, "library_versions", lambda: now | {"torch": "2.11.0"})
    train(recipe, tmp_path / "run", 1, resume=False)
    capsys.readouterr()
    train(recipe, tmp_path / "run", 0)
    printed = capsys.readouterr().err
    assert f"versions differ from the checkpoint's: torch {now['torch']} (was 2.11.0); the run continues" in printed


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
def test_changes_of_the_result_are_refused_unless_allowed(section: str) -> None:
    (field, value), before = next(iter(SCIENCE[section].items())), small_recipe()
    changes = find_result_changes(small_recipe(**{section: {field: value}}), before)
    assert [name for name, _, _ in changes] == [f"{section}.{field}"]
    with pytest.raises(UserError, match=f"^{section}.{field}=.* differs from the run's .*--allow-recipe-change"):
        check_changes(changes, False, print)
    logged: list[str] = []
    check_changes(changes, True, logged.append)
    assert len(logged) == 1
    assert f"--allow-recipe-change: {section}.{field}={value!r} from here on; it was" in logged[0]


def test_hardware_may_change() -> None:
    elsewhere = small_recipe(
        batch={"micro_batch_size": 2, "accumulation_steps": 2},
        hardware={"num_devices": 2, "gpu": "x", "vram_gib": 8},
        memory={"activation_checkpointing": True, "keep_last_micro_batch": False},
        data={"num_workers": 5, "max_damaged_share": 0.5},
        run={"checkpoint_every_minutes": None, "keep_checkpoints": 7},
        evaluation={"train_source": "x"},
    )
    assert find_result_changes(elsewhere, small_recipe()) == []


@pytest.mark.parametrize("sections", [{"encoder": {"name": "resnet10"}}, {"batch": {"contrast_over": "micro_batch"}}])
def test_micro_batches_that_affect_the_result_are_checked(sections: dict[str, dict[str, Any]]) -> None:
    before = small_recipe(**sections)
    smaller = {"micro_batch_size": 2, "accumulation_steps": 4}
    changes = find_result_changes(small_recipe(**{**sections, "batch": sections.get("batch", {}) | smaller}), before)
    assert [name for name, _, _ in changes] == ["batch.micro_batch_size"]
    two = {"batch": sections.get("batch", {}) | {"accumulation_steps": 1}, "hardware": {"num_devices": 2}}
    changes = find_result_changes(small_recipe(**{**sections, **two}), before)
    expected = ["hardware.num_devices"] if "batch" in sections else []
    assert [name for name, _, _ in changes] == expected


def test_changes_that_do_not_fit_the_saved_state_are_never_allowed() -> None:
    with pytest.raises(
        UserError, match="queue_size=8 differs from the run's 0, and the run's saved state does not fit it"
    ):
        check_changes(find_result_changes(small_recipe(moco={"queue_size": 8}), small_recipe()), True, print)


def test_a_run_that_recovered_keeps_its_micro_batch() -> None:
    """The same recipe resumes with the smaller micro-batch; a new micro-batch of the user's takes effect."""
    asked, recovered = small_recipe(), small_recipe(batch={"micro_batch_size": 1, "accumulation_steps": 8})
    logged: list[str] = []
    assert keep_recovered_micro_batch(asked, recovered, 4, logged.append).batch == recovered.batch
    assert logged == ["batch.micro_batch_size=1, as the run found that 4 does not fit"]
    own = small_recipe(batch={"micro_batch_size": 2, "accumulation_steps": 4})
    assert keep_recovered_micro_batch(own, recovered, 4, logged.append) is own
    assert keep_recovered_micro_batch(asked, asked, 4, logged.append) is asked


def test_allowed_changes_take_effect(tiles_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options of the optimizer come from the recipe, not from the checkpoint."""
    train(quick(tiles_folder), tmp_path / "run", 2, resume=False)
    shutil.copytree(tmp_path / "run", tmp_path / "changed")
    changed = quick(tiles_folder, optimizer={"weight_decay": 0.7}, schedule={"epochs": 1, "warmup_epochs": 0})
    with pytest.raises(UserError, match=r"weight_decay=0.7 .*\(as would schedule.epochs, schedule.warmup_epochs\)"):
        train(changed, tmp_path / "changed")
    train(changed, tmp_path / "changed", allow=True)
    assert "--allow-recipe-change: optimizer.weight_decay=0.7 from here on; it was 0.1" in capsys.readouterr().err
    last = verify_checkpoint(tmp_path / "changed" / "checkpoints" / "step_00000005")
    assert last.recipe.optimizer.weight_decay == 0.7
    train(quick(tiles_folder), tmp_path / "run", 3)
    ends = [logged_losses(tmp_path / run)[-1][1] for run in ("run", "changed")]
    assert ends[0] != ends[1]


def test_state_describes_the_checkpoint(tiles_folder: Path, tmp_path: Path) -> None:
    train(quick(tiles_folder), tmp_path / "run", 1, resume=False)
    state = json.loads((tmp_path / "run" / "checkpoints" / "step_00000001" / STATE).read_text())
    assert (state["step"], state["tile_count"], state["processes"], state["micro_batch_asked"]) == (1, 40, 1, 4)
    assert {"python", "torch", "bitsandbytes", "moco-accel"} <= set(state["versions"])
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == load_recipe(
        tmp_path / "run" / "checkpoints" / "step_00000001" / "recipe.yaml"
    )
