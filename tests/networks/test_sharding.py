"""Sharding (FSDP2) changes what each rank holds, and leaves step, checkpoints and features unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.rank_scripts import run_ranks
from support.recipes import small_recipe
from support.trainer_processes import Trainer

from moco_accel.checkpoints.checkpoint import verify_checkpoint
from moco_accel.checkpoints.tensor_files import read_tensors
from moco_accel.common.errors import UserError
from moco_accel.recipe.load import save_recipe

SHARDED = {"fully_shard": True, "keep_last_micro_batch": False}


def run_sharded(count: int, *arguments: str) -> Any:
    return run_ranks("sharded_processes.py", count, *arguments)


@pytest.mark.parametrize(
    ("count", "sections"),
    [
        (2, {}),
        (2, {"memory": {"activation_checkpointing": True}, "encoder": {"freeze_patch_projection": False}}),
        (2, {"batch": {"contrast_over": "micro_batch"}}),
        pytest.param(4, {"moco": {"queue_size": 16}}, marks=pytest.mark.slow),
        pytest.param(4, {"hardware": {"num_nodes": 2}}, marks=pytest.mark.slow),
    ],
    ids=["2 ranks", "checkpointing", "contrast over micro-batches", "4 ranks, queue", "2 nodes of 2"],
)
def test_sharded_step_equals_the_replicated_one(count: int, sections: dict[str, Any]) -> None:
    """Three steps in float64; some matrices of the heads are sharded, others replicated."""
    per_node = count // sections.get("hardware", {}).get("num_nodes", 1)
    found = run_sharded(count, "steps", json.dumps(sections))
    assert found["losses"] == pytest.approx(found["replicated_losses"], rel=1e-12)
    assert found["gradient_error"] < 1e-12, found["gradient_error"]  # worst measured: 2.4e-14
    assert found["parameter_error"] < 1e-10, found["parameter_error"]  # worst measured: 1.0e-12
    assert found["local_parameters"] < found["parameters"] * (1 / per_node + 0.05)
    assert found["local_gradients"] < found["gradients"] * (1 / per_node + 0.05)
    assert found["recorded_forwards"] == 0  # FSDP2 would otherwise accumulate them over a run


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_sharded_checkpoints_equal_replicated_ones(optimizer: str, tmp_path: Path) -> None:
    """They have the same tensors in the same files, and each restores the other's."""
    found = run_sharded(2, "checkpoints", json.dumps({"optimizer": {"name": optimizer}}), str(tmp_path))
    assert found["same_layout"]
    # worst measured: 4.6e-6 with 8 bits, where rounding decides steps of lr 4.7e-6; else 7e-16
    assert found["worst_difference"] < (1e-5 if optimizer == "adamw_8bit" else 1e-12), found["worst_difference"]
    assert found["restored_difference"] == 0
    assert found["restored_replicated_difference"] == 0


def test_full_disk_while_sending_shards_ends_all_ranks() -> None:
    found = run_sharded(2, "write", "{}")
    assert found["errors"] == ["the disk is full", "rank 0 could not write; see its error message"]
    assert found["ranks"] == [0, 1]  # collectives still match


def test_sharded_features_equal_replicated_ones() -> None:
    found = run_sharded(2, "features", "{}")
    assert found["worst_difference"] < 1e-12, found["worst_difference"]
    assert found["loss_after"] == pytest.approx(found["replicated_loss_after"], rel=1e-12)


@pytest.mark.slow
def test_sharded_run_resumes_replicated(tiles_folder: Path, tmp_path: Path) -> None:
    """Train on two sharded ranks with evaluation, resume on one; the end is that of a run on one rank."""
    recipe = small_recipe(
        hardware={"num_devices": 2},
        batch={"micro_batch_size": 2},
        memory=SHARDED,
        data={"source": str(tiles_folder)},
        run={"log_every_steps": 1, "checkpoint_every_steps": 5},
    )
    save_recipe(recipe, tmp_path / "sharded.yaml")
    changes = ["memory.fully_shard=false", "hardware.num_devices=1", "batch.micro_batch_size=4"]
    on_one = [word for change in changes for word in ("--set", change)]
    sharded, single = tmp_path / "sharded", tmp_path / "single"
    assert Trainer("torchrun", sharded, tmp_path / "sharded.yaml").finish() == 0
    assert Trainer("python", single, tmp_path / "sharded.yaml", *on_one).finish() == 0
    shutil.rmtree(sharded / "checkpoints" / "step_00000010")
    resumed = Trainer("python", sharded, tmp_path / "sharded.yaml", "--resume", *on_one)
    assert resumed.finish() == 0, resumed.output()
    losses = [
        [json.loads(row)["loss"] for row in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (sharded, single)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    health = [json.loads((run / "evaluations.jsonl").read_text().splitlines()[0]) for run in (sharded, single)]
    assert health[0]["rank_me"] == pytest.approx(health[1]["rank_me"], rel=1e-4)
    final = [
        verify_checkpoint(run / "checkpoints" / "step_00000010").folder / "model.safetensors"
        for run in (sharded, single)
    ]
    ours, theirs = (dict(read_tensors(file)) for file in final)
    assert (
        max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours if ours[name].numel())
        < 1e-4
    )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"hardware": {"num_devices": 1}, "batch": {"micro_batch_size": 4}},
            "shards matrices over a node's devices, of which there are 1; 2, 4 or 8 work, or memory.fully_shard=false",
        ),
        (
            {"hardware": {"num_devices": 4, "num_nodes": 4}, "batch": {"micro_batch_size": 1}},
            "of which there are 1; 2, 4 or 8 work",
        ),
        (
            {"encoder": {"name": "resnet10", "freeze_patch_projection": False, "image_size": 64}},
            "memory.fully_shard=true shards ViTs, and encoder.name='resnet10'; memory.fully_shard=false works",
        ),
        ({"optimizer": {"name": "lars"}}, "optimizer.name='lars' needs its norm; adamw works"),
        ({"memory": {"mixed_precision": "fp16"}}, "must detect an overflow in any of them; bf16 works"),
        ({"memory": {"keep_last_micro_batch": True}}, "memory.keep_last_micro_batch=false works"),
    ],
)
def test_incompatible_fields_are_refused(sections: dict[str, Any], message: str) -> None:
    fields = {"hardware": {"num_devices": 2}, "batch": {"micro_batch_size": 2}} | sections
    fields["memory"] = SHARDED | sections.get("memory", {})
    with pytest.raises(UserError) as error:
        small_recipe(**fields)
    assert message in str(error.value)
