"""Write the launch command of a recipe: Accelerate, or torchrun for several processes on a CPU."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from moco_accel.recipe.hardware_sections import Hardware

FIRST_NODE = "HOST0"  # placeholder for the first node's address
PORT = 29_500
_TIMEOUT = "--rdzv_conf timeout=300"  # seconds; by default launchers wait 15 minutes for a missing node


@dataclass(frozen=True)
class LaunchOptions:
    """The command line options of `moco_accel/train.py`."""

    recipe_path: str = "recipe.yaml"
    output_dir: str | None = None
    resume: bool = False
    allow_recipe_change: bool = False
    overrides: tuple[str, ...] = ()

    def flags(self) -> dict[str, str | bool | None]:
        """Return the options that are not part of the recipe."""
        return {
            "--output-dir": self.output_dir,
            "--resume": self.resume,
            "--allow-recipe-change": self.allow_recipe_change,
        }

    def as_text(self) -> str:
        """Return the options after `--recipe`, quoted for a shell, each with a space before it."""
        words = [] if self.output_dir is None else ["--output-dir", self.output_dir]
        words += [name for name, value in self.flags().items() if value is True]
        for override in self.overrides:
            words += ["--set", override]
        return "".join(f" {shlex.quote(word)}" for word in words)


def launch_command(hardware: Hardware, recipe_path: str, node: int = 0, first_node: str = FIRST_NODE) -> str:
    """Return the command to run on node `node` of `hardware.num_nodes`; `first_node` is the address of node 0."""
    train = f"moco_accel/train.py --recipe {shlex.quote(recipe_path)}"
    devices, nodes = hardware.num_devices, hardware.num_nodes
    if hardware.vram_gib is None and devices > 1:
        several = f"--nnodes {nodes} --node_rank {node} --master_addr {first_node} --master_port {PORT} {_TIMEOUT}"
        rendezvous = "--standalone" if nodes == 1 else several
        return f"ACCELERATE_USE_CPU=true torchrun {rendezvous} --nproc_per_node {devices // nodes} {train}"
    if nodes == 1:
        config = "cpu" if hardware.vram_gib is None else "single_gpu" if devices == 1 else "dual_gpu"
        processes = f" --num_processes {devices}" if devices > 2 else ""
        return f"accelerate launch --config_file accelerate_configs/{config}.yaml{processes} {train}"
    return (
        f"accelerate launch --config_file accelerate_configs/multi_node.yaml --num_machines {nodes} --num_processes "
        f"{devices} --machine_rank {node} --main_process_ip {first_node} --main_process_port {PORT} {_TIMEOUT} {train}"
    )
