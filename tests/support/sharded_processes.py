"""One of several gloo ranks that shard a MoCo: print what the parent compares. argv: comparison, recipe, folder."""

from __future__ import annotations

import json
import os
import sys
import weakref
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from support.recipes import small_recipe
from support.steps import make_views, own_views
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from moco_accel.checkpoints.checkpoint import (
    Checkpoint,
    TrainerState,
    load_checkpoint,
    send_shards,
    verify_checkpoint,
    write_checkpoint,
)
from moco_accel.checkpoints.optimizer_state import optimizer_tensors
from moco_accel.checkpoints.saver import random_states
from moco_accel.checkpoints.tensor_files import read_layout, read_tensors, safetensors_chunks
from moco_accel.common.errors import UserError
from moco_accel.common.versions import library_versions
from moco_accel.evaluation.features import in_eval_mode
from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.networks.sharding import full_tensor, is_sharded, local_tensor
from moco_accel.processes.control_group import ControlGroup
from moco_accel.recipe.encoder_names import VIT_SIZES, VitSize
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step


@dataclass
class Training:
    """Networks and their optimizer, ready for steps."""

    recipe: Recipe
    accelerator: Accelerator
    moco: MoCo
    model: MoCo
    optimizer: Any

    @classmethod
    def begin(cls, recipe: Recipe, seed: int = 0) -> Training:
        AcceleratorState._reset_state()
        torch.manual_seed(seed)
        accelerator, moco = build_accelerator(recipe, cpu=True), build_moco(recipe)
        built = [weakref.ref(parameter) for parameter in moco.parameters()]
        training = cls(recipe, accelerator, moco, *prepare(accelerator, moco, build_optimizer(recipe, moco)))
        num_replicated = sum(not is_sharded(parameter) for parameter in moco.parameters())
        # a reference to a full parameter would keep it on the device beside its shard
        assert sum(parameter() is not None for parameter in built) == num_replicated
        return training

    def step(self, number: int) -> float:
        views = own_views(self.recipe, self.accelerator, number)
        result = train_step(self.accelerator, self.model, self.optimizer, views, self.recipe, 0.99)
        return float(self.accelerator.reduce(result.loss, "mean"))

    def tensors(self) -> dict[str, Tensor]:
        """Return full parameters, buffers and optimizer state."""
        found = {**self.moco.state_dict(), **optimizer_tensors(self.moco, self.optimizer)}
        return {name: full_tensor(tensor.detach()).clone() for name, tensor in found.items()}

    def gradient(self) -> Tensor:
        gradients = [full_tensor(p.grad) for p in self.moco.parameters() if p.grad is not None]
        return torch.cat([gradient.flatten() for gradient in gradients])


def replicated(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"memory": recipe.memory.model_copy(update={"fully_shard": False})})


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours if ours[name].numel())


def compare_steps(recipe: Recipe, _: Path) -> dict[str, Any]:
    sharded, other = Training.begin(recipe), Training.begin(replicated(recipe))
    losses = [[training.step(number) for number in range(3)] for training in (sharded, other)]
    gradient, expected = sharded.gradient(), other.gradient()
    assert sharded.moco.sharding is not None
    states = [fully_shard.state(root) for root in sharded.moco.sharding._roots]
    return {
        "losses": losses[0],
        "replicated_losses": losses[1],
        "gradient_error": float((gradient - expected).norm() / expected.norm()),
        "parameter_error": largest_difference(sharded.tensors(), other.tensors()),
        "local_parameters": sum(local_tensor(p).numel() for p in sharded.moco.parameters()),
        "parameters": sum(p.numel() for p in other.moco.parameters()),
        "local_gradients": sharded.moco.gradient_buffer.numel(),
        "gradients": other.moco.gradient_buffer.numel(),
        "recorded_forwards": sum(len(state._comm_ctx.post_forward_order) for state in states),
    }


def compare_checkpoints(recipe: Recipe, folder: Path) -> dict[str, Any]:
    trainings = {"sharded": Training.begin(recipe), "replicated": Training.begin(replicated(recipe))}
    saved: dict[str, Checkpoint] = {}
    for name, training in trainings.items():
        for number in range(2):
            training.step(number)
        save(training, folder / name / "step_00000002")
        saved[name] = verify_checkpoint(folder / name / "step_00000002")
    files = [
        [folder / name / "step_00000002" / f"{part}.safetensors" for name in saved] for part in ("model", "optimizer")
    ]
    resumed = {name: Training.begin(recipe, seed=1) for name in saved}  # sharded, from either
    for name, training in resumed.items():
        load_checkpoint(saved[name], training.moco, training.optimizer)
    resumed_replicated = Training.begin(replicated(recipe), seed=2)
    load_checkpoint(saved["sharded"], resumed_replicated.moco, resumed_replicated.optimizer)
    return {
        "same_layout": all(read_layout(one) == read_layout(other) for one, other in files),
        "worst_difference": max(
            largest_difference(dict(read_tensors(one)), dict(read_tensors(other)))
            for one, other in files[: 1 if recipe.optimizer.name == "adamw_8bit" else 2]
        ),
        "restored_difference": max(
            largest_difference(resumed[name].tensors(), trainings[name].tensors()) for name in saved
        ),
        "restored_replicated_difference": largest_difference(
            resumed_replicated.tensors(), trainings["sharded"].tensors()
        ),
    }


def save(training: Training, final: Path) -> None:
    parts = training.moco, training.optimizer
    if dist.get_rank() == 0:
        state = TrainerState(
            step=2, tile_count=64, reading="x", processes=1, micro_batch_asked=2, versions=library_versions()
        )
        write_checkpoint(final, training.recipe, state, *parts, random_states()[None])
    elif training.moco.sharding:
        send_shards(*parts, lambda: None)
    dist.barrier()


def fail_to_write(recipe: Recipe, _: Path) -> dict[str, Any]:
    """Raise an error on rank 0 after some tensors, as a full disk does."""
    training, control_group, error_text = Training.begin(recipe), ControlGroup(), ""
    training.step(0)

    def write_some() -> None:
        for number, _ in enumerate(safetensors_chunks(training.moco.state_dict(), control_group.raise_if_peer_failed)):
            if number == 20:
                raise OSError("the disk is full")

    send = partial(send_shards, training.moco, training.optimizer, control_group.raise_if_peer_failed)
    try:
        control_group.run_on_rank_zero(write_some, send)
    except (OSError, UserError) as error:
        error_text = str(error)
    errors: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error_text)
    return {"errors": errors, "ranks": control_group.all_gather(dist.get_rank())}


def compare_features(recipe: Recipe, _: Path) -> dict[str, Any]:
    """Compute features before the first step and between two steps; the next loss shows that they change nothing."""
    features, losses = [], []
    for each in (recipe, replicated(recipe)):
        training = Training.begin(each)
        pixels = make_views(each, 5)[0]
        other_encoder = training.moco.place_encoder(build_moco(each).encoder, torch.device("cpu"))
        for encoder in (training.moco.encoder, other_encoder):
            with torch.no_grad(), in_eval_mode(encoder):
                features.append(encoder(pixels))
        training.step(0)
        with torch.no_grad(), in_eval_mode(training.moco.encoder):
            features.append(training.moco.encoder(pixels))
        losses.append(training.step(1))
    ours, theirs = features[:3], features[3:]
    return {
        "worst_difference": max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)),
        "loss_after": losses[0],
        "replicated_loss_after": losses[1],
    }


COMPARISONS = {
    "steps": compare_steps,
    "checkpoints": compare_checkpoints,
    "features": compare_features,
    "write": fail_to_write,
}


def main() -> None:
    sections = json.loads(sys.argv[2])
    torch.set_num_threads(1)
    if "8bit" not in sys.argv[2]:
        torch.set_default_dtype(torch.float64)
    VIT_SIZES["tiny"] = VitSize(192, 3, 3)
    count = int(os.environ["WORLD_SIZE"])
    base: dict[str, dict[str, Any]] = {
        "hardware": {"num_devices": count},
        "batch": {"global_batch_size": 2 * 2 * count, "micro_batch_size": 2},
        "memory": {"fully_shard": True, "keep_last_micro_batch": False},
        "moco": {"projector_hidden_dim": 256},
    }
    recipe = small_recipe(**{name: base.get(name, {}) | sections.get(name, {}) for name in base | sections})
    found = COMPARISONS[sys.argv[1]](recipe, Path(sys.argv[3]) if len(sys.argv) > 3 else Path())
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.barrier()  # a rank that leaves early would abort the others
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
