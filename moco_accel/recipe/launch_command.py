"""How a recipe is launched: one command on each node, by Accelerate; torchrun for several processes on a CPU."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from moco_accel.recipe.hardware_sections import Hardware

FIRST_NODE = "HOST0"  # stands for its address, which all nodes reach
PORT = 29_500
_PATIENCE = "--rdzv_conf timeout=300"  # seconds, without which launchers wait a quarter of an hour for a missing node


@dataclass(frozen=True)
class Asked:
    """What was typed after `moco_accel/train.py`."""

    recipe_path: str = "recipe.yaml"
    output_dir: str | None = None
    resume: bool = False
    allow_recipe_change: bool = False
    overrides: tuple[str, ...] = ()

    def flags(self) -> dict[str, str | bool | None]:
        """All that says more than a recipe does."""
        return {
            "--output-dir": self.output_dir,
            "--resume": self.resume,
            "--allow-recipe-change": self.allow_recipe_change,
        }

    def options(self) -> str:
        """What follows `--recipe`, as a shell takes it; empty, or with a space before it."""
        words = [] if self.output_dir is None else ["--output-dir", self.output_dir]
        words += [name for name, value in self.flags().items() if value is True]
        for override in self.overrides:
            words += ["--set", override]
        return "".join(f" {shlex.quote(word)}" for word in words)


def launch_command(hardware: Hardware, recipe_path: str, node: int = 0, first_node: str = FIRST_NODE) -> str:
    """What to type on `node` of `hardware.num_nodes`; `first_node` is the address of node 0."""
    train = f"moco_accel/train.py --recipe {shlex.quote(recipe_path)}"
    devices, nodes = hardware.num_devices, hardware.num_nodes
    if hardware.vram_gib is None and devices > 1:
        there = f"--nnodes {nodes} --node_rank {node} --master_addr {first_node} --master_port {PORT} {_PATIENCE}"
        here = "--standalone" if nodes == 1 else there
        return f"ACCELERATE_USE_CPU=true torchrun {here} --nproc_per_node {devices // nodes} {train}"
    if nodes == 1:
        config = "cpu" if hardware.vram_gib is None else "single_gpu" if devices == 1 else "dual_gpu"
        processes = f" --num_processes {devices}" if devices > 2 else ""
        return f"accelerate launch --config_file accelerate_configs/{config}.yaml{processes} {train}"
    return (
        f"accelerate launch --config_file accelerate_configs/multi_node.yaml --num_machines {nodes} "
        f"--num_processes {devices} --machine_rank {node} --main_process_ip {first_node} --main_process_port {PORT} "
        f"{_PATIENCE} {train}"
    )
