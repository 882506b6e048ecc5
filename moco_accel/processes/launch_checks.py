"""Check that a launch fits the recipe: devices, processes and nodes. Each rank does so before it contacts others."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

import torch

from moco_accel.common.errors import UserError
from moco_accel.recipe.launch_command import FIRST_NODE, LaunchOptions, launch_command
from moco_accel.recipe.rules import can_shard
from moco_accel.recipe.schema import Recipe

_REQUIRED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """The launcher's environment variables; `local_world_size` is None if the launcher does not report it."""

    world_size: int
    rank: int
    local_world_size: int | None
    address: str
    port: int

    @classmethod
    def from_environment(cls) -> Launch:
        """Read the variables that `torchrun` and `accelerate launch` set.

        Raises:
            UserError: If a variable is not a number, or is missing where there are several processes.
        """
        world_size = _read_number("WORLD_SIZE", 1, least=1)
        missing = [name for name in _REQUIRED if name not in os.environ]
        if world_size > 1 and missing:
            raise UserError(
                f"WORLD_SIZE={world_size} and no {', '.join(missing)} in the environment; accelerate launch and "
                "torchrun set them; with another launcher, set RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, "
                "MASTER_ADDR and MASTER_PORT for each process"
            )
        local_world_size = _read_number("LOCAL_WORLD_SIZE", 0) or None
        address = os.environ.get("MASTER_ADDR", "localhost")
        port = _read_number("MASTER_PORT", 29_500)
        return cls(world_size, _read_number("RANK", 0), local_world_size, address, port)


def _read_number(name: str, default: int, least: int = 0) -> int:
    text = os.environ.get(name, str(default))
    if not text.strip().isdecimal() or int(text) < least:
        works = f"{name}={default} works for one process" if default else f"unsetting {name} works"
        raise UserError(f"{name}={text!r} in the environment is not a whole number of at least {least}; {works}")
    return int(text)


def check_machine(recipe: Recipe, options: LaunchOptions, launch: Launch) -> None:
    """Check the recipe's hardware against this machine and this launch.

    Raises:
        UserError: If they do not fit; the message has the command that fits.
    """
    hardware = recipe.hardware
    if not torch.cuda.is_available():
        if hardware.vram_gib is not None:
            raise UserError(
                f"hardware.vram_gib={hardware.vram_gib:g} needs a GPU and torch finds none here; "
                "--recipe recipes/cpu_demo.yaml runs on a CPU, and so does this recipe with --set "
                "hardware.vram_gib=null"
            )
        if recipe.memory.mixed_precision == "fp16":
            raise UserError("memory.mixed_precision='fp16' needs a GPU; memory.mixed_precision=bf16 works on a CPU")
    if launch.world_size != hardware.num_devices:
        raise UserError(
            f"hardware.num_devices={hardware.num_devices} but {_describe_count(launch.world_size)} launched; "
            + _advice(recipe, options, launch)
        )
    per_node = hardware.num_devices // hardware.num_nodes
    if launch.local_world_size not in (None, per_node):
        raise UserError(
            f"hardware.num_devices={hardware.num_devices} on hardware.num_nodes={hardware.num_nodes} are {per_node} on "
            f"each node, but LOCAL_WORLD_SIZE={launch.local_world_size}: "
            f"{_describe_count(launch.local_world_size or 0)} launched on this one; {_advice(recipe, options, launch)}"
        )


def _describe_count(processes: int) -> str:
    return "1 process was" if processes == 1 else f"{processes} processes were"


def _advice(recipe: Recipe, options: LaunchOptions, launch: Launch) -> str:
    """Return the command that fits the recipe, and the changes that fit the recipe to this launch."""
    first_node = FIRST_NODE if launch.address in ("localhost", "127.0.0.1") else launch.address
    line = launch_command(recipe.hardware, options.recipe_path, 0, first_node)
    command = f"launch with: {line}{options.as_text()}"
    if recipe.hardware.num_nodes > 1:
        command += f" (on node 0 of {recipe.hardware.num_nodes}, and on each other node with its own number)"
    changes = _recipe_changes(recipe, launch)
    return f"{command} — or, for this launch: {changes}" if changes else command


def _recipe_changes(recipe: Recipe, launch: Launch) -> str:
    """Return `--set` options; empty if the batch is not divisible by the processes, or they by their nodes."""
    batch = recipe.batch
    local_world_size = launch.local_world_size or max(1, launch.world_size // recipe.hardware.num_nodes)
    if launch.world_size % local_world_size or batch.global_batch_size % launch.world_size:
        return ""
    nodes = launch.world_size // local_world_size
    changes: dict[str, object] = {}
    if launch.world_size != recipe.hardware.num_devices:
        per_device, micro = batch.global_batch_size // launch.world_size, batch.micro_batch_size
        micro = micro if per_device % micro == 0 else per_device
        changes["hardware.num_devices"] = launch.world_size
        changes["batch.accumulation_steps"] = per_device // micro
        changes["batch.micro_batch_size"] = micro
    if nodes != recipe.hardware.num_nodes:
        changes["hardware.num_nodes"] = nodes
    if recipe.memory.fully_shard and not can_shard(launch.world_size // nodes):
        changes["memory.fully_shard"] = "false"
    return " ".join(f"--set {name}={value}" for name, value in changes.items())


def check_trackers(recipe: Recipe) -> None:
    """Raise UserError if a tracker is not installed; Accelerate would ignore it without notice."""
    for name in recipe.run.trackers:
        if importlib.util.find_spec(name) is None:
            others = [other for other in recipe.run.trackers if other != name]
            raise UserError(
                f"run.trackers={recipe.run.trackers}: {name} is not installed; pip install {name}, or "
                f"run.trackers={others} works"
            )
