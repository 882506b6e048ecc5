"""Checkpoints: bit-exact state, files that other tools read, and which checkpoints are kept."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.recipes import small_recipe
from support.saved_runs import SMALL, SavedRun, checkpoint_names

from moco_accel.checkpoints.checkpoint import FILES
from moco_accel.checkpoints.optimizer_state import optimizer_layout, optimizer_tensors
from moco_accel.checkpoints.run_folder import mark_best
from moco_accel.checkpoints.tensor_files import layout_of, read_layout, read_tensors, safetensors_chunks

RECIPES = {
    "adamw": {"moco": {"queue_size": 16}},
    "8-bit": {"optimizer": {"name": "adamw_8bit"}},
    "lars, resnet": {
        "optimizer": {"name": "lars"},
        "encoder": {"name": "resnet10", "image_size": 32, "freeze_patch_projection": False},
    },
}


@pytest.mark.parametrize("sections", RECIPES.values(), ids=RECIPES)
def test_a_restored_run_continues_bit_exactly(sections: dict[str, dict[str, object]], tmp_path: Path) -> None:
    recipe = small_recipe(**sections)
    uninterrupted = SavedRun(tmp_path / "run", recipe)
    uninterrupted.train(1)
    uninterrupted.save()
    expected = uninterrupted.train(2)
    ours = optimizer_tensors(uninterrupted.moco, uninterrupted.optimizer)
    resumed = SavedRun(tmp_path / "run", recipe)
    assert resumed.step == 1
    assert resumed.train(2) == expected
    for name, value in uninterrupted.moco.state_dict().items():
        assert torch.equal(value, resumed.moco.state_dict()[name]), name
    theirs = optimizer_tensors(resumed.moco, resumed.optimizer)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert layout_of(ours) == optimizer_layout(recipe.optimizer.name, uninterrupted.moco)


def test_scaler_state_is_restored(tmp_path: Path) -> None:
    """The scale grows after three steps: one before the checkpoint, two after."""
    scaled = SavedRun(tmp_path / "run", SMALL, scale=1024.0)
    scaled.train(1)
    scaled.save()
    resumed = SavedRun(tmp_path / "run", SMALL, scale=65536.0)
    assert resumed.accelerator.scaler.get_scale() == 1024.0
    resumed.train(2)
    assert resumed.accelerator.scaler.get_scale() == 2048.0


def test_random_states_are_restored(tmp_path: Path) -> None:
    run = SavedRun(tmp_path / "run", SMALL)
    random.gauss(0, 1)  # keeps the second number of a pair for the next call
    np.random.normal()
    run.save()

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(1).item()]

    expected = draw()
    assert draw() != expected
    assert SavedRun(tmp_path / "run", SMALL).logged == []
    assert draw() == expected


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    run = SavedRun(tmp_path / "run", SMALL)
    run.train(1)
    first = {name: (run.save() / name).read_bytes() for name in FILES}
    again = SavedRun(tmp_path / "run", SMALL).save()  # replaces the existing one
    assert {name: (again / name).read_bytes() for name in FILES} == first
    assert checkpoint_names(tmp_path / "run") == ["step_00000001"]


def test_files_are_compatible_with_safetensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5, dtype=torch.float64),
        "channels last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "bf16": torch.randn(7).bfloat16(),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flag": torch.tensor(True),
        "none": torch.zeros(0, 4),
        "count": torch.tensor(-3),
        "part": torch.arange(10.0)[2:7:2],
    }
    (tmp_path / "ours").write_bytes(b"".join(safetensors_chunks(tensors)))
    theirs = load_file(tmp_path / "ours")
    assert theirs.keys() == tensors.keys()
    assert all(torch.equal(theirs[name], value) for name, value in tensors.items())
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "theirs", {"made": "by them"})
    assert read_layout(tmp_path / "theirs") == layout_of(tensors) == read_layout(tmp_path / "ours")
    assert all(torch.equal(value, tensors[name]) for name, value in read_tensors(tmp_path / "theirs"))


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    run = SavedRun(tmp_path / "run", SMALL)
    for step in (100_000_000, 3, 20, 100):
        run.step = step
        made = run.save()
        if step == 3:
            mark_best(tmp_path / "run", made, 0.5)
    # steps are compared as numbers, not as text; the checkpoint that was saved first has the highest step
    assert checkpoint_names(tmp_path / "run") == ["step_00000003", "step_00000100", "step_100000000"]
    assert (tmp_path / "run" / "latest").read_text() == "step_00000100\n"
    assert (tmp_path / "run" / "best").read_text() == "step_00000003 0.500000\n"


def test_only_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("step_00000007.partial", "step_00000003.removed", "mine.partial", "step_7.partial"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "model.safetensors").write_bytes(b"half")
    run = SavedRun(tmp_path / "run", SMALL)
    run.save()
    assert checkpoint_names(tmp_path / "run") == ["mine.partial", "step_00000000", "step_7.partial"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs the peak memory of a process from /proc")
def test_saving_needs_the_memory_of_one_tensor(tmp_path: Path) -> None:
    run = SavedRun(tmp_path / "run", small_recipe(moco={"projector_hidden_dim": 1024, "output_dim": 256}))
    run.train(1)

    def memory(field: str) -> int:
        return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])  # KiB

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    made = run.save()
    grown, saved = memory("VmHWM") - before, sum(file.stat().st_size for file in made.iterdir()) // 1024
    print(f"a checkpoint of {saved} KiB took {grown} KiB")
    assert saved > 80_000
    assert grown < saved / 4
