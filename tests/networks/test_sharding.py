"""FSDP2 changes what each process holds, and nothing of the step, checkpoints or features."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.recipes import small_recipe
from support.trainer_processes import Trainer

from moco_accel.checkpoints.checkpoint import check_checkpoint
from moco_accel.checkpoints.tensor_files import read_tensors
from moco_accel.common.errors import UserError
from moco_accel.recipe.load import save_recipe

SUPPORT = Path(__file__).parents[1] / "support"
SHARDED = {"fully_shard": True, "keep_last_micro_batch": False}


def run_processes(count: int, *arguments: str) -> dict[str, Any]:
    """What `sharded_processes.py` printed."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT.parent)}
    command = [sys.executable, *launch, str(SUPPORT / "sharded_processes.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("count", "sections"),
    [
        (2, {}),
        (2, {"memory": {"activation_checkpointing": True}, "encoder": {"freeze_patch_projection": False}}),
        (2, {"batch": {"contrast_over": "micro_batch"}}),
        (4, {"moco": {"queue_size": 16}}),
        (4, {"hardware": {"num_nodes": 2}}),
    ],
    ids=["2", "2 checkpointed", "2 over micro-batches", "4 with a queue", "2 nodes of 2"],
)
def test_the_step_is_that_of_whole_networks(count: int, sections: dict[str, Any]) -> None:
    """Over three steps in float64, heads of which some matrices are divided and some stay whole."""
    per_node = count // sections.get("hardware", {}).get("num_nodes", 1)
    found = run_processes(count, "steps", json.dumps(sections))
    assert found["losses"] == pytest.approx(found["losses_whole"], rel=1e-12)
    assert found["gradient_error"] < 1e-12, found["gradient_error"]  # worst measured: 2.4e-14
    assert found["parameter_error"] < 1e-10, found["parameter_error"]  # worst measured: 1.0e-12
    assert found["numbers_held"] < found["numbers_whole"] * (1 / per_node + 0.05)
    assert found["gradients_held"] < found["gradients_whole"] * (1 / per_node + 0.05)
    assert found["notes_left"] == 0  # what FSDP2 writes down of forwards would add up over a run


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_checkpoints_are_those_of_whole_networks(optimizer: str, tmp_path: Path) -> None:
    """The same tensors in the same files, and each is restored from the other's."""
    found = run_processes(2, "checkpoints", json.dumps({"optimizer": {"name": optimizer}}), str(tmp_path))
    assert found["same_layout"]
    # worst measured: 4.6e-6 with 8 bits, where rounding decides steps of lr 4.7e-6; 7e-16 without
    assert found["worst_difference"] < (1e-5 if optimizer == "adamw_8bit" else 1e-12), found["worst_difference"]
    assert found["restored_difference"] == 0
    assert found["restored_whole_difference"] == 0


def test_a_full_disk_ends_no_process_in_the_midst_of_sending() -> None:
    found = run_processes(2, "write", "{}")
    assert found["said"] == ["the disk is full", "the first process could not write; its own error says why"]
    assert found["words"] == [0, 1]  # all are in step after it


def test_features_are_those_of_whole_networks() -> None:
    found = run_processes(2, "features", "{}")
    assert found["worst_difference"] < 1e-12, found["worst_difference"]
    assert found["loss_after"] == pytest.approx(found["loss_after_whole"], rel=1e-12)


def test_a_run_of_divided_networks_goes_on_with_whole_ones(tiles_folder: Path, tmp_path: Path) -> None:
    """Trained on two processes that divide, examined and saved; resumed on one, which ends as one alone does."""
    recipe = small_recipe(
        hardware={"num_devices": 2},
        batch={"micro_batch_size": 2},
        memory=SHARDED,
        data={"source": str(tiles_folder)},
        run={"log_every_steps": 1, "checkpoint_every_steps": 5},
    )
    save_recipe(recipe, tmp_path / "divided.yaml")
    whole = ["memory.fully_shard=false", "hardware.num_devices=1", "batch.micro_batch_size=4"]
    on_one = [word for change in whole for word in ("--set", change)]
    divided, alone = tmp_path / "divided", tmp_path / "alone"
    assert Trainer("torchrun", divided, tmp_path / "divided.yaml").finish() == 0
    assert Trainer("python", alone, tmp_path / "divided.yaml", *on_one).finish() == 0
    shutil.rmtree(divided / "checkpoints" / "step_00000010")
    again = Trainer("python", divided, tmp_path / "divided.yaml", "--resume", *on_one)
    assert again.finish() == 0, again.said()
    losses = [
        [json.loads(row)["loss"] for row in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (divided, alone)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    health = [json.loads((run / "evaluations.jsonl").read_text().splitlines()[0]) for run in (divided, alone)]
    assert health[0]["rank_me"] == pytest.approx(health[1]["rank_me"], rel=1e-4)
    ends = [
        check_checkpoint(run / "checkpoints" / "step_00000010").folder / "model.safetensors" for run in (divided, alone)
    ]
    ours, theirs = (dict(read_tensors(file)) for file in ends)
    assert (
        max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours if ours[name].numel())
        < 1e-4
    )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"hardware": {"num_devices": 1}, "batch": {"micro_batch_size": 4}},
            "divides matrices over a node's devices, of which there are 1; 2, 4 or 8 work, or memory.fully_shard=false",
        ),
        (
            {"hardware": {"num_devices": 4, "num_nodes": 4}, "batch": {"micro_batch_size": 1}},
            "of which there are 1; 2, 4 or 8 work",
        ),
        (
            {"encoder": {"name": "resnet10", "freeze_patch_projection": False, "image_size": 64}},
            "memory.fully_shard=true divides ViTs, and encoder.name='resnet10'; memory.fully_shard=false works",
        ),
        ({"optimizer": {"name": "lars"}}, "optimizer.name='lars' wants its norm; adamw works"),
        ({"memory": {"mixed_precision": "fp16"}}, "wants to know of an overflow in any; bf16 works"),
        ({"memory": {"keep_last_micro_batch": True}}, "memory.keep_last_micro_batch=false works"),
    ],
)
def test_what_does_not_go_together(sections: dict[str, Any], message: str) -> None:
    fields = {"hardware": {"num_devices": 2}, "batch": {"micro_batch_size": 2}} | sections
    fields["memory"] = SHARDED | sections.get("memory", {})
    with pytest.raises(UserError) as error:
        small_recipe(**fields)
    assert message in str(error.value)
