"""accelerate_configs/ and the printed launch commands, read by Accelerate's own loader, parser and checks."""

from __future__ import annotations

import os
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import ComputeEnvironment, DistributedType
from accelerate.utils.launch import _filter_args, prepare_multi_gpu_env
from torch.distributed.run import config_from_args, get_args_parser

from moco_accel.recipe.hardware_sections import Hardware
from moco_accel.recipe.launch_command import PORT, launch_command

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
EXPECTED = {
    "cpu": (DistributedType.NO, 1, 1, True),
    "single_gpu": (DistributedType.NO, 1, 1, False),
    "dual_gpu": (DistributedType.MULTI_GPU, 1, 2, False),
    "multi_node": (DistributedType.MULTI_GPU, 2, -1, False),  # -1: --num_processes must be given
}
HARDWARE = {
    "one": Hardware(num_devices=1, vram_gib=8),
    "two": Hardware(num_devices=2, vram_gib=8),
    "eight": Hardware(num_devices=8, vram_gib=24),
    "nodes": Hardware(num_devices=32, num_nodes=4, vram_gib=24),
    "nodes_of_one": Hardware(num_devices=2, num_nodes=2, vram_gib=24),
}


def parse_launch(command: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Parse `command` with Accelerate's own parser and checks."""
    monkeypatch.chdir(ROOT)
    first, second, *words = shlex.split(command)
    assert (first, second) == ("accelerate", "launch")
    arguments = launch_command_parser().parse_args(words)
    _validate_launch_command(arguments)
    return arguments


def test_each_topology_has_a_config() -> None:
    assert {path.stem for path in CONFIGS} == set(EXPECTED)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_intended_values(path: Path) -> None:
    """Accelerate's loader refuses unknown keys."""
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    found = config.distributed_type, config.num_machines, config.num_processes, config.use_cpu
    assert found == EXPECTED[path.stem]
    assert config.compute_environment == ComputeEnvironment.LOCAL_MACHINE
    assert (config.mixed_precision, config.machine_rank, config.main_training_function) == ("no", 0, "main")
    assert set(yaml.safe_load(path.read_text())) <= {field.name for field in fields(ClusterConfig)}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_line_has_a_comment(path: Path) -> None:
    for line in path.read_text().splitlines():
        assert line.startswith("# ") or len(line.partition(" # ")[2]) > 4, line


@pytest.mark.parametrize("name", HARDWARE)
def test_printed_commands_start_the_recipes_processes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = HARDWARE[name]
    for node in range(hardware.num_nodes):
        arguments = parse_launch(launch_command(hardware, "recipes/my own.yaml", node, "10.0.0.7"), monkeypatch)
        assert arguments.num_processes == hardware.num_devices
        assert arguments.num_machines in (None, hardware.num_nodes)
        assert bool(arguments.multi_gpu) == (hardware.num_devices > 1)
        assert not arguments.use_cpu
        assert int(arguments.machine_rank) == node
        assert arguments.training_script == "moco_accel/train.py"
        assert arguments.training_script_args == ["--recipe", "recipes/my own.yaml"]


def test_cpu_config_uses_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = parse_launch(launch_command(Hardware(), "recipes/cpu_demo.yaml"), monkeypatch)
    assert (arguments.use_cpu, arguments.num_processes, arguments.multi_gpu) == (True, 1, False)


@pytest.mark.parametrize("node", [1, 2, 3])
def test_every_node_uses_the_first_ones_address(node: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the configuration that torch's launcher builds before it starts processes."""
    hardware = HARDWARE["nodes"]
    arguments = parse_launch(launch_command(hardware, "r.yaml", node, "10.0.0.7"), monkeypatch)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # keep changes out of this process
    prepare_multi_gpu_env(arguments)
    script = ["--training_script", "train.py", "--training_script_args", []]
    config = config_from_args(_filter_args(arguments, get_args_parser(), script))[0]
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (4, 4, 8)
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("static", f"10.0.0.7:{PORT}")
    assert config.rdzv_configs["rank"] == node


def test_multi_node_config_requires_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "accelerate launch --config_file accelerate_configs/multi_node.yaml moco_accel/train.py --recipe r.yaml"
    with pytest.raises(ValueError, match="manually pass in `--num_processes`"):
        parse_launch(command, monkeypatch)
