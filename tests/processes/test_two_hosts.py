"""Two hosts: the same losses as one host; both stop when they lose each other, and one can resume alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.recipes import small_recipe
from support.trainer_processes import TRAIN, Trainer
from support.two_hosts import PORT, Host, missing_requirement, two_hosts, wait_until_gone

from moco_accel.recipe.launch_command import launch_command
from moco_accel.recipe.load import recipe_from_dict, save_recipe
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe

pytestmark = [
    pytest.mark.skipif(bool(missing_requirement()), reason=f"needs Linux namespaces: {missing_requirement()}")
]

STALL_SECONDS = 8
STEPS = 15
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
TOLERANCE = 1e-5  # relative, in fp32; worst measured: 3e-6


def shared_recipe(tiles: Path, processes: int, nodes: int = 2) -> Recipe:
    """Return a recipe whose steps take about 0.3 s, each logged; global batch 8 on any number of processes.

    At ten times the lr, AdamW magnifies rounding errors a hundredfold, on one host as on two.
    """
    recipe = small_recipe(
        batch={"micro_batch_size": min(4, 8 // processes), "accumulation_steps": 2 if processes == 1 else 1},
        optimizer={"base_lr": 1e-3, "lr": scaled_lr(1e-3, 8)},
        hardware={"num_devices": processes, "num_nodes": nodes},
        schedule={"epochs": STEPS // 5},
        data={"source": str(tiles)},
        evaluation={"every_epochs": None},
        run={"log_every_steps": 1, "checkpoint_every_steps": 2, "stall_seconds": STALL_SECONDS},
    )
    return recipe_from_dict(recipe.model_dump(exclude={"planned"}))


def losses(run: Path) -> list[float]:
    """Return the loss of each step, in order; a repeated step counts as it was last done."""
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert list(found) == list(range(len(found)))
    return list(found.values())


def check_equal(run: Path, losses_of_one_host: list[float]) -> None:
    found = losses(run)
    assert len(found) == len(losses_of_one_host) == STEPS
    worst = max(abs(a - b) / abs(b) for a, b in zip(found, losses_of_one_host, strict=True))
    print(f"{run.name}: worst relative difference of a loss {worst:.2g}")
    assert worst < TOLERANCE


@pytest.fixture(scope="module")
def losses_of_one_host(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("one_host")
    save_recipe(shared_recipe(tiles_folder, 1, 1), folder / "one.yaml")
    trainer = Trainer("python", folder / "one", folder / "one.yaml")
    assert trainer.finish() == 0, trainer.output()
    return losses(folder / "one")


def start_with_torchrun(hosts: tuple[Host, Host], recipe: Recipe, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Run the launch command that `moco-plan` prints, on each host."""
    save_recipe(recipe, folder / "two.yaml")
    started = []
    for node, host in enumerate(hosts):
        line = launch_command(recipe.hardware, str(folder / "two.yaml"), node, hosts[0].address)
        started.append(host.start(["sh", "-c", f"exec env {line} --output-dir {folder / 'run'}"], PATH=PATH))
    return started


def start_without_launcher(
    hosts: tuple[Host, Host], recipe: Recipe, folder: Path, **variables: str
) -> list[subprocess.Popen[bytes]]:
    """Start a process on each host as a scheduler does, with environment variables."""
    save_recipe(recipe, folder / "two.yaml")
    command = [sys.executable, TRAIN, "--recipe", str(folder / "two.yaml"), "--output-dir", str(folder / "run")]
    return [host.start(command, **environment(rank, hosts[0].address), **variables) for rank, host in enumerate(hosts)]


def start_with_accelerate(hosts: tuple[Host, Host], recipe: Recipe, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Run the launch command for GPUs, with ACCELERATE_USE_CPU=true in the environment."""
    save_recipe(recipe, folder / "two.yaml")
    with_gpus = recipe.hardware.model_copy(update={"vram_gib": 8.0})
    started = []
    for node, host in enumerate(hosts):
        line = launch_command(with_gpus, str(folder / "two.yaml"), node, hosts[0].address)
        started.append(host.start(["sh", "-c", f"exec {line} --output-dir {folder / 'run'}"], PATH=PATH))
    return started


def environment(rank: int, address: str, processes: int = 2) -> dict[str, str]:
    sizes = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": "1"}
    return {"RANK": str(rank), "LOCAL_RANK": "0", "MASTER_ADDR": address, "MASTER_PORT": str(PORT)} | sizes


def wait_for_rows(run: Path, rows: int, started: list[Any], hosts: tuple[Host, Host]) -> None:
    deadline = time.monotonic() + 90
    metrics = run / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < rows:
        running = all(each.poll() is None for each in started)
        assert running and time.monotonic() < deadline, [host.output()[-3000:] for host in hosts]  # noqa: PT018
        time.sleep(0.02)


Start = Callable[[tuple[Host, Host], Recipe, Path], list[subprocess.Popen[bytes]]]


@pytest.mark.parametrize(
    ("start", "processes"),
    [
        (start_with_torchrun, 2),
        pytest.param(start_with_torchrun, 4, marks=pytest.mark.slow),
        pytest.param(start_with_accelerate, 2, marks=pytest.mark.slow),
    ],
)
def test_two_hosts_compute_the_losses_of_one(
    start: Start, processes: int, losses_of_one_host: list[float], tiles_folder: Path, tmp_path: Path
) -> None:
    """No host can resolve even its own name."""
    with two_hosts(tmp_path) as hosts:
        started = start(hosts, shared_recipe(tiles_folder, processes), tmp_path)
        codes = [each.wait(120) for each in started]
        assert codes == [0, 0], [host.output()[-3000:] for host in hosts]
        assert wait_until_gone(hosts, 10) < 10
    check_equal(tmp_path / "run", losses_of_one_host)


def test_hosts_that_differ(tiles_folder: Path, tmp_path: Path) -> None:
    """Both end before training."""
    recipe = shared_recipe(tiles_folder, 2)
    with two_hosts(tmp_path) as hosts:
        save_recipe(recipe, tmp_path / "two.yaml")
        command = [sys.executable, TRAIN, "--recipe", str(tmp_path / "two.yaml"), "--output-dir", str(tmp_path / "run")]
        changes: list[list[str]] = [[], ["--set", "run.seed=3"]]
        started = [
            host.start([*command, *change], **environment(rank, hosts[0].address))
            for rank, (host, change) in enumerate(zip(hosts, changes, strict=True))
        ]
        assert [each.wait(60) for each in started] == [2, 2]
        for host in hosts:
            assert "error: rank 1 on south has run.seed=3 where rank 0 on north has 0; all ranks need" in host.output()
    assert not (tmp_path / "run").exists()


def test_hosts_that_never_connect(tiles_folder: Path, tmp_path: Path) -> None:
    recipe = shared_recipe(tiles_folder, 2)
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"rendezvous_seconds": 5.0})})
    with two_hosts(tmp_path) as hosts:
        hosts[1].lose_packets_to(hosts[0])
        started = start_without_launcher(hosts, recipe, tmp_path)
        assert [each.wait(60) for each in started] == [2, 2]
        where = f"MASTER_ADDR={hosts[0].address} MASTER_PORT={PORT}"
        first, second = (host.output() for host in hosts)
        assert f"error: rank 0 waited 5 s at {where} for 2 processes, and rank 1 never connected; check" in first
        assert f"error: rank 1 of 2 could not reach the rendezvous at {where} within 5 s (" in second
        assert wait_until_gone(hosts, 5) < 5


@pytest.mark.slow
def test_an_interface_that_reaches_no_other_host(tiles_folder: Path, tmp_path: Path) -> None:
    """GLOO_SOCKET_IFNAME names the loopback. One host gives up, and ends both."""
    with two_hosts(tmp_path) as hosts:
        started = start_without_launcher(hosts, shared_recipe(tiles_folder, 2), tmp_path, GLOO_SOCKET_IFNAME="lo")
        assert [each.wait(120) for each in started] == [2, 2]
        for host in hosts:
            errors = [line for line in host.output().splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, host.output()
            assert (
                f"reached the rendezvous at {hosts[0].address} and cannot connect to the other ranks for" in errors[0]
            )
            assert "and GLOO_SOCKET_IFNAME (for GPUs also NCCL_SOCKET_IFNAME) names the network interface" in errors[0]


def disconnect_cable(hosts: tuple[Host, Host]) -> None:
    hosts[1].cut_off()


def lose_packets(hosts: tuple[Host, Host]) -> None:
    hosts[1].lose_packets_to(hosts[0])


@pytest.mark.parametrize(
    ("cut", "start", "processes"),
    [
        (disconnect_cable, start_without_launcher, 2),
        pytest.param(lose_packets, start_without_launcher, 2, marks=pytest.mark.slow),
        pytest.param(disconnect_cable, start_with_torchrun, 4, marks=pytest.mark.slow),
    ],
)
def test_hosts_that_lose_each_other_stop_and_one_resumes(
    cut: Callable[[tuple[Host, Host]], None],
    start: Start,
    processes: int,
    losses_of_one_host: list[float],
    tiles_folder: Path,
    tmp_path: Path,
) -> None:
    run, recipe = tmp_path / "run", shared_recipe(tiles_folder, processes)
    with two_hosts(tmp_path) as hosts:
        for host in hosts:
            host.resolve(**{host.name: "127.0.1.1"})  # as on Debian
        started = start(hosts, recipe, tmp_path)
        wait_for_rows(run, 4, started, hosts)
        cut(hosts)
        seconds = wait_until_gone(hosts, 60)
        outputs = [host.output() for host in hosts]
        codes = [each.wait(10) for each in started]
    print(f"all processes ended after {seconds:.1f} s")
    assert seconds < STALL_SECONDS + 5, outputs
    by_launcher = start is start_with_torchrun
    assert codes == ([1, 1] if by_launcher else [2, 2]), outputs
    for text, own, lost, host in ((outputs[0], 0, processes // 2, "south"), (outputs[1], processes // 2, 0, "north")):
        errors = [line for line in text.splitlines() if line.startswith("error")]
        assert len(errors) == processes // 2, text
        assert any(f"error on rank {own}: " in line for line in errors), text
        assert all(f"rank {lost} on {host} (process " in line and "cannot be reached" in line for line in errors), text
        assert ("exitcode  : 2" in text) == by_launcher
    assert 4 <= len(losses(run)) < STEPS
    save_recipe(recipe, tmp_path / "two.yaml")
    one = ("hardware.num_devices=1", "hardware.num_nodes=1", "batch.micro_batch_size=4", "batch.accumulation_steps=2")
    trainer = Trainer(
        "python", run, tmp_path / "two.yaml", "--resume", *(word for each in one for word in ("--set", each))
    )
    assert trainer.finish() == 0, trainer.output()
    check_equal(run, losses_of_one_host)
