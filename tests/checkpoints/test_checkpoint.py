"""Checkpoints: all state kept to the bit, in files that other tools read, and never fewer than one that is whole."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.recipes import small_recipe
from support.saved_runs import SMALL, SavedRun, names

from moco_accel.checkpoints.checkpoint import FILES
from moco_accel.checkpoints.optimizer_state import optimizer_layout, optimizer_tensors
from moco_accel.checkpoints.run_folder import mark_best
from moco_accel.checkpoints.tensor_files import layout_of, read_layout, read_tensors, tensor_chunks

RECIPES = {
    "adamw": {"moco": {"queue_size": 16}},
    "8-bit": {"optimizer": {"name": "adamw_8bit"}},
    "lars, resnet": {
        "optimizer": {"name": "lars"},
        "encoder": {"name": "resnet10", "image_size": 32, "freeze_patch_projection": False},
    },
}


@pytest.mark.parametrize("sections", RECIPES.values(), ids=RECIPES)
def test_a_restored_run_goes_on_to_the_bit(sections: dict[str, dict[str, object]], tmp_path: Path) -> None:
    recipe = small_recipe(**sections)
    whole = SavedRun(tmp_path / "run", recipe)
    whole.train(1)
    whole.save()
    expected = whole.train(2)
    ours = optimizer_tensors(whole.moco, whole.optimizer)
    resumed = SavedRun(tmp_path / "run", recipe)
    assert resumed.step == 1
    assert resumed.train(2) == expected
    for name, value in whole.moco.state_dict().items():
        assert torch.equal(value, resumed.moco.state_dict()[name]), name
    theirs = optimizer_tensors(resumed.moco, resumed.optimizer)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # and what is expected of a file of it is what there is
    assert layout_of(ours) == optimizer_layout(recipe.optimizer.name, whole.moco)


def test_the_scaler_goes_on_where_it_was(tmp_path: Path) -> None:
    """It grows after three steps: one before, two after."""
    scaled = SavedRun(tmp_path / "run", SMALL, scale=1024.0)
    scaled.train(1)
    scaled.save()
    resumed = SavedRun(tmp_path / "run", SMALL, scale=65536.0)
    assert resumed.accelerator.scaler.get_scale() == 1024.0
    resumed.train(2)
    assert resumed.accelerator.scaler.get_scale() == 2048.0


def test_random_states_are_restored(tmp_path: Path) -> None:
    run = SavedRun(tmp_path / "run", SMALL)
    random.gauss(0, 1)  # which leaves half of a pair
    np.random.normal()
    run.save()

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(1).item()]

    expected = draw()
    assert draw() != expected
    assert SavedRun(tmp_path / "run", SMALL).said == []
    assert draw() == expected


def test_the_same_state_makes_the_same_bytes(tmp_path: Path) -> None:
    run = SavedRun(tmp_path / "run", SMALL)
    run.train(1)
    first = {name: (run.save() / name).read_bytes() for name in FILES}
    again = SavedRun(tmp_path / "run", SMALL).save()  # over the one that is there
    assert {name: (again / name).read_bytes() for name in FILES} == first
    assert names(tmp_path / "run") == ["step_00000001"]


def test_files_are_safetensors_both_ways(tmp_path: Path) -> None:
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
    (tmp_path / "ours").write_bytes(b"".join(tensor_chunks(tensors)))
    theirs = load_file(tmp_path / "ours")
    assert theirs.keys() == tensors.keys()
    assert all(torch.equal(theirs[name], value) for name, value in tensors.items())
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "theirs", {"made": "by them"})
    assert read_layout(tmp_path / "theirs") == layout_of(tensors) == read_layout(tmp_path / "ours")
    assert all(torch.equal(value, tensors[name]) for name, value in read_tensors(tmp_path / "theirs"))


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    run = SavedRun(tmp_path / "run", SMALL)
    for step in (100_000_000, 3, 20, 100):
        run.step = step
        made = run.save()
        if step == 3:
            mark_best(tmp_path / "run", made, 0.5)
    # the numbers decide, not the names' order; what was saved first is newer than all else here
    assert names(tmp_path / "run") == ["step_00000003", "step_00000100", "step_100000000"]
    assert (tmp_path / "run" / "latest").read_text() == "step_00000100\n"
    assert (tmp_path / "run" / "best").read_text() == "step_00000003 0.500000\n"


def test_what_a_killed_process_left_is_cleaned_up_and_nothing_else(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("step_00000007.partial", "step_00000003.removed", "mine.partial", "step_7.partial"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "model.safetensors").write_bytes(b"half")
    run = SavedRun(tmp_path / "run", SMALL)
    run.save()
    assert names(tmp_path / "run") == ["mine.partial", "step_00000000", "step_7.partial"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="where the kernel tells a process's peak")
def test_saving_takes_the_memory_of_a_tensor_not_of_all(tmp_path: Path) -> None:
    run = SavedRun(tmp_path / "run", small_recipe(moco={"projector_hidden_dim": 1024, "output_dim": 256}))
    run.train(1)

    def memory(field: str) -> int:
        return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])  # KiB

    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
    before = memory("VmRSS")
    made = run.save()
    grown, saved = memory("VmHWM") - before, sum(file.stat().st_size for file in made.iterdir()) // 1024
    print(f"a checkpoint of {saved} KiB took {grown} KiB")
    assert saved > 80_000
    assert grown < saved / 4
