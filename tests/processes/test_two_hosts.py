"""A run over two hosts is the run of one; cut off from each other both stop and say so, and one host goes on alone."""

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
from support.two_hosts import PORT, Host, lacking, two_hosts, wait_until_gone

from moco_accel.recipe.launch_command import launch_command
from moco_accel.recipe.load import recipe_from_dict, save_recipe
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe

pytestmark = [pytest.mark.skipif(bool(lacking()), reason=f"makes hosts of namespaces: {lacking()}")]

STALL_SECONDS = 8
STEPS = 15
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
TOLERANCE = 1e-5  # relative, in fp32; worst seen: 3e-6


def shared_recipe(tiles: Path, processes: int, nodes: int = 2) -> Recipe:
    """Steps of some 0.3 s, each logged; global batch 8 on any number of processes.

    At ten times the lr, AdamW magnifies what the order of a sum rounds off a hundredfold, on one host as on two.
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
    """Of every step once, in order: a step done again counts as it was done last."""
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert list(found) == list(range(len(found)))
    return list(found.values())


def check_equal(run: Path, of_one_host: list[float]) -> None:
    found = losses(run)
    assert len(found) == len(of_one_host) == STEPS
    worst = max(abs(a - b) / abs(b) for a, b in zip(found, of_one_host, strict=True))
    print(f"{run.name}: worst relative difference of a loss {worst:.2g}")
    assert worst < TOLERANCE


@pytest.fixture(scope="module")
def of_one_host(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("one_host")
    save_recipe(shared_recipe(tiles_folder, 1, 1), folder / "one.yaml")
    trainer = Trainer("python", folder / "one", folder / "one.yaml")
    assert trainer.finish() == 0, trainer.said()
    return losses(folder / "one")


def start_by_torchrun(hosts: tuple[Host, Host], recipe: Recipe, folder: Path) -> list[subprocess.Popen[bytes]]:
    """The very lines that a user is told to type."""
    save_recipe(recipe, folder / "two.yaml")
    started = []
    for node, host in enumerate(hosts):
        line = launch_command(recipe.hardware, str(folder / "two.yaml"), node, hosts[0].address)
        started.append(host.start(["sh", "-c", f"exec env {line} --output-dir {folder / 'run'}"], PATH=PATH))
    return started


def start_each(
    hosts: tuple[Host, Host], recipe: Recipe, folder: Path, **variables: str
) -> list[subprocess.Popen[bytes]]:
    """A process on each host, as a scheduler starts it: what it needs to know is in its environment."""
    save_recipe(recipe, folder / "two.yaml")
    command = [sys.executable, TRAIN, "--recipe", str(folder / "two.yaml"), "--output-dir", str(folder / "run")]
    return [host.start(command, **environment(rank, hosts[0].address), **variables) for rank, host in enumerate(hosts)]


def start_by_accelerate(hosts: tuple[Host, Host], recipe: Recipe, folder: Path) -> list[subprocess.Popen[bytes]]:
    """As with GPUs; `ACCELERATE_USE_CPU=true` is in the environment."""
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
        assert running and time.monotonic() < deadline, [host.said()[-3000:] for host in hosts]  # noqa: PT018
        time.sleep(0.02)


Start = Callable[[tuple[Host, Host], Recipe, Path], list[subprocess.Popen[bytes]]]


@pytest.mark.parametrize(
    ("start", "processes"),
    [
        (start_by_torchrun, 2),
        pytest.param(start_by_torchrun, 4, marks=pytest.mark.slow),
        pytest.param(start_by_accelerate, 2, marks=pytest.mark.slow),
    ],
)
def test_losses_of_two_hosts_are_those_of_one(
    start: Start, processes: int, of_one_host: list[float], tiles_folder: Path, tmp_path: Path
) -> None:
    """Launched as `moco-plan` says; no host can resolve even its own name."""
    with two_hosts(tmp_path) as hosts:
        started = start(hosts, shared_recipe(tiles_folder, processes), tmp_path)
        codes = [each.wait(120) for each in started]
        assert codes == [0, 0], [host.said()[-3000:] for host in hosts]
        assert wait_until_gone(hosts, 10) < 10
    check_equal(tmp_path / "run", of_one_host)


def test_hosts_that_want_something_else(tiles_folder: Path, tmp_path: Path) -> None:
    """Before anything is trained, on both."""
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
            assert "error: rank 1 on south has run.seed=3 where rank 0 on north has 0; all ranks need" in host.said()
    assert not (tmp_path / "run").exists()


def test_hosts_that_never_meet(tiles_folder: Path, tmp_path: Path) -> None:
    recipe = shared_recipe(tiles_folder, 2)
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"rendezvous_seconds": 5.0})})
    with two_hosts(tmp_path) as hosts:
        hosts[1].go_deaf(hosts[0])
        started = start_each(hosts, recipe, tmp_path)
        assert [each.wait(60) for each in started] == [2, 2]
        where = f"MASTER_ADDR={hosts[0].address} MASTER_PORT={PORT}"
        assert f"error: rank 0 has waited 5 s at {where} for 2 processes, and rank 1 never came; see" in hosts[0].said()
        assert f"error: rank 1 of 2 has tried for 5 s to reach the meeting place, {where}, in vain (" in hosts[1].said()
        assert wait_until_gone(hosts, 5) < 5


@pytest.mark.slow
def test_a_network_that_no_other_host_is_on(tiles_folder: Path, tmp_path: Path) -> None:
    """Both meet, and then seek each other where the user says: within themselves. One gives up, and ends both."""
    with two_hosts(tmp_path) as hosts:
        started = start_each(hosts, shared_recipe(tiles_folder, 2), tmp_path, GLOO_SOCKET_IFNAME="lo")
        assert [each.wait(120) for each in started] == [2, 2]
        for host in hosts:
            errors = [line for line in host.said().splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, host.said()
            assert f"has met the others at {hosts[0].address} and cannot connect to them for tensors (" in errors[0]
            assert "and GLOO_SOCKET_IFNAME (for GPUs also NCCL_SOCKET_IFNAME) names the network interface" in errors[0]


def pull_the_cable(hosts: tuple[Host, Host]) -> None:
    hosts[1].cut_off()


def lose_what_is_sent(hosts: tuple[Host, Host]) -> None:
    hosts[1].go_deaf(hosts[0])


@pytest.mark.parametrize(
    ("cut", "start", "processes"),
    [
        (pull_the_cable, start_each, 2),
        pytest.param(lose_what_is_sent, start_each, 2, marks=pytest.mark.slow),
        pytest.param(pull_the_cable, start_by_torchrun, 4, marks=pytest.mark.slow),
    ],
)
def test_hosts_that_lose_each_other_stop_and_one_goes_on(
    cut: Callable[[tuple[Host, Host]], None],
    start: Start,
    processes: int,
    of_one_host: list[float],
    tiles_folder: Path,
    tmp_path: Path,
) -> None:
    run, recipe = tmp_path / "run", shared_recipe(tiles_folder, processes)
    with two_hosts(tmp_path) as hosts:
        for host in hosts:
            host.resolve(**{host.name: "127.0.1.1"})  # as Debian has it
        started = start(hosts, recipe, tmp_path)
        wait_for_rows(run, 4, started, hosts)
        cut(hosts)
        seconds = wait_until_gone(hosts, 60)
        said = [host.said() for host in hosts]
        codes = [each.wait(10) for each in started]
    print(f"all were gone after {seconds:.1f} s")
    assert seconds < STALL_SECONDS + 5, said
    by_launcher = start is start_by_torchrun
    assert codes == ([1, 1] if by_launcher else [2, 2]), said
    for text, own, lost, host in ((said[0], 0, processes // 2, "south"), (said[1], processes // 2, 0, "north")):
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
    assert trainer.finish() == 0, trainer.said()
    check_equal(run, of_one_host)
