"""Launches that do not fit the recipe or this machine."""

from __future__ import annotations

import os

import pytest
from support.recipes import small_recipe

from moco_accel.common.errors import UserError
from moco_accel.processes import rendezvous
from moco_accel.processes.launch_checks import Launch, check_machine
from moco_accel.recipe.launch_command import LaunchOptions
from moco_accel.recipe.schema import Recipe

no_gpu = pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="messages of a machine without a GPU")
OPTIONS = LaunchOptions("recipes/my own.yaml", "runs/a", overrides=("data.source=t",))
COMMAND = "moco_accel/train.py --recipe 'recipes/my own.yaml' --output-dir runs/a --set data.source=t"
EACH_NODE = (
    f"--rdzv_conf timeout=300 --nproc_per_node 2 {COMMAND} (on node 0 of 2, and on each other node with its own number)"
)


def launch(processes: int, local: int | None = None, address: str = "10.0.0.5") -> Launch:
    return Launch(processes, 0, local, address, 29_500)


def planned_for(devices: int, nodes: int = 1, micro_batch: int = 2) -> Recipe:
    return small_recipe(
        batch={
            "global_batch_size": 16,
            "micro_batch_size": micro_batch,
            "accumulation_steps": 16 // devices // micro_batch,
        },
        hardware={"num_devices": devices, "num_nodes": nodes},
    )


@no_gpu
@pytest.mark.parametrize(
    ("recipe", "launched", "message"),
    [
        (
            planned_for(2),
            launch(1, None, "localhost"),
            "hardware.num_devices=2 but 1 process was launched; launch with: ACCELERATE_USE_CPU=true torchrun "
            f"--standalone --nproc_per_node 2 {COMMAND} — or, for this launch: --set hardware.num_devices=1 "
            "--set batch.accumulation_steps=8 --set batch.micro_batch_size=2",
        ),
        (
            planned_for(1),
            launch(4, 4),
            f"hardware.num_devices=1 but 4 processes were launched; launch with: accelerate launch --config_file "
            f"accelerate_configs/cpu.yaml {COMMAND} — or, for this launch: --set hardware.num_devices=4 "
            "--set batch.accumulation_steps=2 --set batch.micro_batch_size=2",
        ),
        (  # a batch of 16 is not divisible by 3
            planned_for(4, 2),
            launch(3, 3),
            "hardware.num_devices=4 but 3 processes were launched; launch with: ACCELERATE_USE_CPU=true torchrun "
            f"--nnodes 2 --node_rank 0 --master_addr 10.0.0.5 --master_port 29500 {EACH_NODE}",
        ),
        (  # one of two nodes is left
            planned_for(4, 2, micro_batch=4),
            launch(2, 2, "localhost"),
            "hardware.num_devices=4 but 2 processes were launched; launch with: ACCELERATE_USE_CPU=true torchrun "
            f"--nnodes 2 --node_rank 0 --master_addr HOST0 --master_port 29500 {EACH_NODE} — "
            "or, for this launch: --set hardware.num_devices=2 --set batch.accumulation_steps=2 "
            "--set batch.micro_batch_size=4 --set hardware.num_nodes=1",
        ),
        (
            planned_for(4, 2),
            launch(4, 4),
            "hardware.num_devices=4 on hardware.num_nodes=2 are 2 on each node, but LOCAL_WORLD_SIZE=4: 4 processes "
            "were launched on this one; launch with: ACCELERATE_USE_CPU=true torchrun --nnodes 2 --node_rank 0 "
            f"--master_addr 10.0.0.5 --master_port 29500 {EACH_NODE} — or, for this launch: "
            "--set hardware.num_nodes=1",
        ),
        (  # nodes with different numbers of processes
            planned_for(4, 2),
            launch(4, 3),
            "hardware.num_devices=4 on hardware.num_nodes=2 are 2 on each node, but LOCAL_WORLD_SIZE=3: 3 processes "
            "were launched on this one; launch with: ACCELERATE_USE_CPU=true torchrun --nnodes 2 --node_rank 0 "
            f"--master_addr 10.0.0.5 --master_port 29500 {EACH_NODE}",
        ),
    ],
)
def test_a_launch_that_does_not_fit(recipe: Recipe, launched: Launch, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_machine(recipe, OPTIONS, launched)
    assert str(error.value) == message


@no_gpu
@pytest.mark.parametrize(
    ("recipe", "launched"),
    [
        (planned_for(1), launch(1)),
        (planned_for(4), launch(4, 4)),
        (planned_for(4, 2), launch(4, 2)),
        (planned_for(4, 2), launch(4)),
    ],
)
def test_a_launch_that_fits(recipe: Recipe, launched: Launch) -> None:
    check_machine(recipe, OPTIONS, launched)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2 and no LOCAL_RANK, MASTER_ADDR, MASTER_PORT in the environ"),
        (
            {"WORLD_SIZE": "two"},
            "WORLD_SIZE='two' in the environment is not a whole number of at least 1; WORLD_SIZE=1",
        ),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0' in the environment is not a whole number of at least 1; WORLD_SIZE=1"),
    ],
)
def test_a_launcher_that_sets_too_little(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert Launch.from_environment() == Launch(1, 0, None, "localhost", 29_500)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        Launch.from_environment()


def test_gloo_uses_the_network_of_the_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    for address in ("127.0.0.1", "localhost", "no.such.host.invalid"):
        rendezvous.choose_interface(address)
        assert "GLOO_SOCKET_IFNAME" not in os.environ
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "set by the user")
    rendezvous.choose_interface("192.0.2.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "set by the user"
