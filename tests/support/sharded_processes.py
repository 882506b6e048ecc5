"""One of several gloo processes that divide a MoCo: prints what its parent compares. argv: what, recipe, folder."""

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
from support.step_processes import make_views
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from moco_accel.checkpoints.checkpoint import (
    Checkpoint,
    State,
    check_checkpoint,
    load_checkpoint,
    send_parts,
    write_checkpoint,
)
from moco_accel.checkpoints.optimizer_state import optimizer_tensors
from moco_accel.checkpoints.random_states import random_states
from moco_accel.checkpoints.tensor_files import read_layout, read_tensors, tensor_chunks
from moco_accel.common.errors import UserError
from moco_accel.common.versions import library_versions
from moco_accel.evaluation.features import in_eval_mode
from moco_accel.networks.encoders import _VIT_SIZES
from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.networks.sharding import is_divided, local, nobody, whole
from moco_accel.processes.control_group import Agreement
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step


@dataclass
class Training:
    """Networks and their optimizer, of which steps can be made."""

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
        undivided = sum(not is_divided(parameter) for parameter in moco.parameters())
        # on a device, a whole parameter that somebody holds would take its place beside all parts
        assert sum(parameter() is not None for parameter in built) == undivided
        return training

    def step(self, number: int) -> float:
        mine = make_views(self.recipe, number).chunk(self.accelerator.num_processes, dim=1)
        first, second = (view.split(self.recipe.batch.micro_batch_size) for view in mine[dist.get_rank()])
        result = train_step(self.accelerator, self.model, self.optimizer, (first, second), self.recipe, 0.99)
        return float(self.accelerator.reduce(result.loss, "mean"))

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers and what the optimizer remembers, whole."""
        found = {**self.moco.state_dict(), **optimizer_tensors(self.moco, self.optimizer)}
        return {name: whole(tensor.detach(), nobody).clone() for name, tensor in found.items()}

    def gradient(self) -> Tensor:
        trained = [whole(p.grad, nobody) for p in self.moco.parameters() if p.grad is not None]
        return torch.cat([gradient.flatten() for gradient in trained])


def replicated(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"memory": recipe.memory.model_copy(update={"fully_shard": False})})


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours if ours[name].numel())


def compare_steps(recipe: Recipe, _: Path) -> dict[str, Any]:
    divided, other = Training.begin(recipe), Training.begin(replicated(recipe))
    losses = [[training.step(number) for number in range(3)] for training in (divided, other)]
    gradient, expected = divided.gradient(), other.gradient()
    assert divided.moco.shards is not None
    states = [fully_shard.state(root) for root in divided.moco.shards._roots]
    return {
        "losses": losses[0],
        "losses_whole": losses[1],
        "gradient_error": float((gradient - expected).norm() / expected.norm()),
        "parameter_error": largest_difference(divided.tensors(), other.tensors()),
        "numbers_held": sum(local(p).numel() for p in divided.moco.parameters()),
        "numbers_whole": sum(p.numel() for p in other.moco.parameters()),
        "gradients_held": divided.moco.gradient.numel(),
        "gradients_whole": other.moco.gradient.numel(),
        "notes_left": sum(len(state._comm_ctx.post_forward_order) for state in states),
    }


def compare_checkpoints(recipe: Recipe, folder: Path) -> dict[str, Any]:
    trainings = {"divided": Training.begin(recipe), "whole": Training.begin(replicated(recipe))}
    saved: dict[str, Checkpoint] = {}
    for name, training in trainings.items():
        for number in range(2):
            training.step(number)
        save(training, folder / name / "step_00000002")
        saved[name] = check_checkpoint(folder / name / "step_00000002")
    files = [
        [folder / name / "step_00000002" / f"{what}.safetensors" for name in saved] for what in ("model", "optimizer")
    ]
    resumed = {name: Training.begin(recipe, seed=1) for name in saved}  # divided, from either
    for name, training in resumed.items():
        load_checkpoint(saved[name], training.moco, training.optimizer)
    again = Training.begin(replicated(recipe), seed=2)
    load_checkpoint(saved["divided"], again.moco, again.optimizer)
    return {
        "same_layout": all(read_layout(one) == read_layout(other) for one, other in files),
        "worst_difference": max(
            largest_difference(dict(read_tensors(one)), dict(read_tensors(other)))
            for one, other in files[: 1 if recipe.optimizer.name == "adamw_8bit" else 2]
        ),
        "restored_difference": max(
            largest_difference(resumed[name].tensors(), trainings[name].tensors()) for name in saved
        ),
        "restored_whole_difference": largest_difference(again.tensors(), trainings["divided"].tensors()),
    }


def save(training: Training, final: Path) -> None:
    parts = training.moco, training.optimizer
    if dist.get_rank() == 0:
        state = State(step=2, tile_count=64, reading="x", processes=1, micro_batch_asked=2, versions=library_versions())
        write_checkpoint(final, training.recipe, state, *parts, random_states()[None])
    elif training.moco.shards:
        send_parts(*parts, nobody)
    dist.barrier()


def fail_to_write(recipe: Recipe, _: Path) -> dict[str, Any]:
    """The disk is full after some tensors, for which all processes have met."""
    training, agreement, found = Training.begin(recipe), Agreement(), ""
    training.step(0)

    def write_some() -> None:
        for number, _ in enumerate(tensor_chunks(training.moco.state_dict(), agreement.go_on)):
            if number == 20:
                raise OSError("the disk is full")

    try:
        agreement.by_first(write_some, partial(send_parts, training.moco, training.optimizer, agreement.go_on))
    except (OSError, UserError) as error:
        found = str(error)
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, found)
    return {"said": texts, "words": agreement.all(dist.get_rank())}


def compare_features(recipe: Recipe, _: Path) -> dict[str, Any]:
    """Before the first step, between two steps: examined encoders are trained as if they had not been."""
    features, losses = [], []
    for each in (recipe, replicated(recipe)):
        training = Training.begin(each)
        pixels = make_views(each, 5)[0]
        for encoder in (training.moco.encoder, training.moco.placed(build_moco(each).encoder, torch.device("cpu"))):
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
        "loss_after_whole": losses[1],
    }


def main() -> None:
    what, sections = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    if "8bit" not in sys.argv[2]:
        torch.set_default_dtype(torch.float64)
    _VIT_SIZES["tiny"] = (192, 3, 3)
    count = int(os.environ["WORLD_SIZE"])
    base: dict[str, dict[str, Any]] = {
        "hardware": {"num_devices": count},
        "batch": {"global_batch_size": 2 * 2 * count, "micro_batch_size": 2},
        "memory": {"fully_shard": True, "keep_last_micro_batch": False},
        "moco": {"projector_hidden_dim": 256},
    }
    recipe = small_recipe(**{name: base.get(name, {}) | sections.get(name, {}) for name in base | sections})
    folder = Path(sys.argv[3]) if len(sys.argv) > 3 else Path()
    whats = {
        "steps": compare_steps,
        "checkpoints": compare_checkpoints,
        "features": compare_features,
        "write": fail_to_write,
    }
    found = whats[what](recipe, folder)
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.barrier()  # who leaves early aborts the others
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
