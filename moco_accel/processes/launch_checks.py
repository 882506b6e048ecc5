"""Whether a launch is one that the recipe expects: how many processes, on how many nodes, with what they need to know.

Each process asks this of itself, before it looks for others.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

import torch

from moco_accel.common.errors import UserError
from moco_accel.recipe.hardware_sections import Hardware
from moco_accel.recipe.launch_command import FIRST_NODE, Asked, launch_command
from moco_accel.recipe.rules import divides_networks
from moco_accel.recipe.schema import Recipe

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """What the launcher told this process by its environment; `on_this_node`: how many it started here, if it says."""

    processes: int
    rank: int
    on_this_node: int | None
    address: str
    port: int

    @classmethod
    def of_environment(cls) -> Launch:
        """Raises UserError for a variable that is no number, or is not there though there are several processes."""
        processes = _number("WORLD_SIZE", 1, least=1)
        missing = [name for name in _NEEDED if name not in os.environ]
        if processes > 1 and missing:
            raise UserError(
                f"WORLD_SIZE={processes} and no {', '.join(missing)} in the environment; accelerate launch and "
                "torchrun set them, under another launcher set RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, "
                "MASTER_ADDR and MASTER_PORT for each process"
            )
        here = _number("LOCAL_WORLD_SIZE", 0) or None
        address = os.environ.get("MASTER_ADDR", "localhost")
        return cls(processes, _number("RANK", 0), here, address, _number("MASTER_PORT", 29_500))

    def nodes(self, expected: int) -> int | None:
        """How many there are: as many as `expected` where that is not said; None if they are not all alike."""
        here = self.on_this_node or max(1, self.processes // expected)
        return None if self.processes % here else self.processes // here


def _number(name: str, default: int, least: int = 0) -> int:
    text = os.environ.get(name, str(default))
    if not text.strip().isdecimal() or int(text) < least:
        works = f"{name}={default} works alone" if default else "without it, it works"
        raise UserError(f"{name}={text!r} in the environment is no such number; {works}")
    return int(text)


def check_machine(recipe: Recipe, asked: Asked, launch: Launch) -> None:
    """Hold the recipe's hardware against this machine and this launch. Raises UserError."""
    if not torch.cuda.is_available():
        if recipe.hardware.vram_gib is not None:
            raise UserError(
                f"hardware.vram_gib={recipe.hardware.vram_gib:g} wants a GPU and torch sees none here; "
                "--recipe recipes/cpu_demo.yaml runs on a CPU, and --set hardware.vram_gib=null forces this one to"
            )
        if recipe.memory.mixed_precision == "fp16":
            raise UserError("memory.mixed_precision='fp16' needs a GPU; memory.mixed_precision=bf16 works on a CPU")
    hardware = recipe.hardware
    if launch.processes != hardware.num_devices:
        raise UserError(
            f"hardware.num_devices={hardware.num_devices} but {in_words(launch.processes)} launched; "
            + _fitting(recipe, asked, launch)
        )
    on_each = hardware.num_devices // hardware.num_nodes
    if launch.on_this_node not in (None, on_each):
        raise UserError(
            f"hardware.num_devices={hardware.num_devices} on hardware.num_nodes={hardware.num_nodes} are {on_each} on "
            f"each node, but LOCAL_WORLD_SIZE={launch.on_this_node}: {in_words(launch.on_this_node or 0)} launched on "
            f"this one; {_fitting(recipe, asked, launch)}"
        )


def in_words(processes: int) -> str:
    return "1 process was" if processes == 1 else f"{processes} processes were"


def _fitting(recipe: Recipe, asked: Asked, launch: Launch) -> str:
    """The launch line that fits the recipe, and what would make the recipe fit this launch."""
    fitting = f"launch with: {_line(recipe.hardware, asked, launch)}"
    changes = _changes(recipe, launch)
    return f"{fitting} — or, for this launch: {changes}" if changes else fitting


def _line(hardware: Hardware, asked: Asked, launch: Launch) -> str:
    first_node = FIRST_NODE if launch.address in ("localhost", "127.0.0.1") else launch.address
    line = launch_command(hardware, asked.recipe_path, 0, first_node) + asked.options()
    if hardware.num_nodes == 1:
        return line
    return f"{line} (on node 0 of {hardware.num_nodes}, and on each other node with its own number)"


def _changes(recipe: Recipe, launch: Launch) -> str:
    """As `--set` takes them; empty where the batch does not divide over these processes, or they over their nodes."""
    batch, nodes = recipe.batch, launch.nodes(recipe.hardware.num_nodes)
    if nodes is None or batch.global_batch_size % launch.processes:
        return ""
    changes: dict[str, object] = {}
    if launch.processes != recipe.hardware.num_devices:
        per_device, micro = batch.global_batch_size // launch.processes, batch.micro_batch_size
        kept = micro if per_device % micro == 0 else per_device
        changes["hardware.num_devices"] = launch.processes
        changes["batch.accumulation_steps"] = per_device // kept
        changes["batch.micro_batch_size"] = kept
    if nodes != recipe.hardware.num_nodes:
        changes["hardware.num_nodes"] = nodes
    if recipe.memory.fully_shard and not divides_networks(launch.processes // nodes):
        changes["memory.fully_shard"] = "false"
    return " ".join(f"--set {name}={value}" for name, value in changes.items())


def check_trackers(recipe: Recipe) -> None:
    """Raises UserError for one that is not installed: Accelerate would leave it out without a word."""
    for name in recipe.run.trackers:
        if importlib.util.find_spec(name) is None:
            others = [other for other in recipe.run.trackers if other != name]
            raise UserError(
                f"run.trackers={recipe.run.trackers}: {name} is not installed; pip install {name}, or "
                f"run.trackers={others} works"
            )
