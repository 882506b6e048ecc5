"""Launches that do not fit the recipe, ranks that differ, processes that never come: a line each, and exit code 2."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.recipes import small_recipe
from support.trainer_processes import ENVIRONMENT

from moco_accel.common.errors import UserError
from moco_accel.processes import launch_consistency, rendezvous
from moco_accel.processes.launch_checks import Launch, check_machine
from moco_accel.recipe.launch_command import Asked
from moco_accel.recipe.load import save_recipe
from moco_accel.recipe.schema import Recipe

no_gpu = pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="messages of a machine without a GPU")
ASKED = Asked("recipes/my own.yaml", "runs/a", overrides=("data.source=t",))
TYPED = "moco_accel/train.py --recipe 'recipes/my own.yaml' --output-dir runs/a --set data.source=t"
EACH_NODE = (
    f"--rdzv_conf timeout=300 --nproc_per_node 2 {TYPED} (on node 0 of 2, and on each other node with its own number)"
)


def launch(processes: int, on_this_node: int | None = None, address: str = "10.0.0.5", rank: int = 0) -> Launch:
    return Launch(processes, rank, on_this_node, address, 29_500)


def planned_for(devices: int, nodes: int = 1, micro_batch: int = 2, batch: int = 16) -> Recipe:
    return small_recipe(
        batch={
            "global_batch_size": batch,
            "micro_batch_size": micro_batch,
            "accumulation_steps": batch // devices // micro_batch,
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
            f"--standalone --nproc_per_node 2 {TYPED} — or, for this launch: --set hardware.num_devices=1 "
            "--set batch.accumulation_steps=8 --set batch.micro_batch_size=2",
        ),
        (
            planned_for(1),
            launch(4, 4),
            f"hardware.num_devices=1 but 4 processes were launched; launch with: accelerate launch --config_file "
            f"accelerate_configs/cpu.yaml {TYPED} — or, for this launch: --set hardware.num_devices=4 "
            "--set batch.accumulation_steps=2 --set batch.micro_batch_size=2",
        ),
        (  # no batch of 16 for 3
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
        (  # nodes of unlike numbers of processes
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
        check_machine(recipe, ASKED, launched)
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
    check_machine(recipe, ASKED, launched)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2 and no LOCAL_RANK, MASTER_ADDR, MASTER_PORT in the environ"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' in the environment is no such number; WORLD_SIZE=1 works alone"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0' in the environment is no such number; WORLD_SIZE=1 works alone"),
    ],
)
def test_a_launcher_that_says_too_little(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert Launch.of_environment() == Launch(1, 0, None, "localhost", 29_500)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        Launch.of_environment()


def facts(host: str = "a", mistake: str | None = None, **changed: Any) -> launch_consistency.Facts:
    found = launch_consistency.facts(planned_for(2), ASKED, "localhost", None) | {"host": host, "mistake": mistake}
    for part in ("asked", "versions"):
        known = {name: value for name, value in changed.items() if name.replace("__", ".") in found[part]}
        found[part] = found[part] | {name.replace("__", "."): value for name, value in known.items()}
    return json.loads(json.dumps(found))


def test_who_differs_is_named() -> None:
    assert launch_consistency.unlike({0: facts(), 1: facts()}) == ""
    assert launch_consistency.warnings({0: facts(), 1: facts()}) == []
    one = {0: facts(), 1: facts(), 2: facts("b", optimizer__lr=0.5), 3: facts("b", optimizer__lr=0.6)}
    assert launch_consistency.unlike(one) == (
        "rank 2 on b has optimizer.lr=0.5 where rank 0 on a has 9.375e-06 (rank 3 too); all ranks need one recipe, and "
        "the same flags: the same file and command on each node"
    )
    many = facts(run__seed=1, moco__temperature=0.1, batch__micro_batch_size=1, schedule__epochs=7, data__source=None)
    assert "and 2 more; all" in launch_consistency.unlike({0: facts(), 1: many})
    assert launch_consistency.unlike({0: facts(), 1: facts(torch="2.13.0")}).startswith(
        "rank 1 has torch=2.13.0 where rank 0 has 2."
    )
    assert (
        launch_consistency.unlike({0: facts(), 1: facts(bitsandbytes="absent")}) == ""
    )  # which plain AdamW does not need
    eight = {"optimizer__name": "adamw_8bit"}
    stale = facts() | {"versions": facts()["versions"] | {"moco_accel/*.py": "0123456789ab"}}
    assert "rank 1 has moco_accel/*.py=0123456789ab where rank 0 has " in launch_consistency.unlike(
        {0: facts(), 1: stale}
    )
    assert "bitsandbytes=absent" in launch_consistency.unlike(
        {0: facts(**eight), 1: facts(bitsandbytes="absent", **eight)}
    )
    assert (
        launch_consistency.unlike({0: facts(), 1: facts("b", mistake="no disk")}) == "rank 1 on b cannot begin: no disk"
    )
    [line] = launch_consistency.warnings({0: facts(), 1: facts(numpy="1.0")})
    assert line.startswith("rank 1 has numpy=1.0 where rank 0 has ")
    assert launch_consistency.ranks_in_words([4]) == "rank 4"
    assert launch_consistency.ranks_in_words([1, 2, 3, 4, 5]) == "ranks 1, 2, 3 and 2 more"


def test_flags_are_compared() -> None:
    resumed = facts() | {"asked": facts()["asked"] | {"--resume": True}}
    assert launch_consistency.unlike({0: facts(), 1: resumed}).startswith(
        "rank 1 has --resume=True where rank 0 has False; all"
    )


def test_a_first_host_that_takes_its_name_for_itself() -> None:
    loopback, known, unknown = (
        facts(host) | {"address": a} for host, a in (("a", "127.0.1.1"), ("b", "10.0.0.5"), ("c", None))
    )
    assert launch_consistency.unlike({0: loopback, 1: unknown, 2: known}) == (
        "MASTER_ADDR is 127.0.1.1 to rank 0 on a itself and 10.0.0.5 to others; 10.0.0.5 in place of the name, on all "
        "nodes, works"
    )
    for fine in ((known, known), (loopback, loopback), (known, loopback), (unknown, known), (loopback, unknown)):
        assert launch_consistency.unlike(dict(enumerate(fine))) == ""


def test_gloo_takes_the_network_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    for address in ("127.0.0.1", "localhost", "no.such.host.invalid"):
        rendezvous.choose_interface(address)
        assert "GLOO_SOCKET_IFNAME" not in os.environ
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "as the user says")
    rendezvous.choose_interface("192.0.2.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "as the user says"


class Cases:
    """Launches to be tried all at once."""

    def __init__(self, folder: Path, tiles: Path) -> None:
        self._folder, self._ranks = folder, list[list[dict[str, Any]]]()
        recipe = small_recipe(
            batch={"micro_batch_size": 2, "accumulation_steps": 2},
            hardware={"num_devices": 2},
            data={"source": str(tiles)},
            schedule={"epochs": 1},
            evaluation={"every_epochs": None},
            run={"rendezvous_seconds": 5},
        )
        save_recipe(recipe, folder / "two.yaml")

    def add(self, *changes: list[str] | None, versions: dict[str, str] | None = None, **environment: str) -> None:
        """What each rank's `--set` or flags are; None: it never comes. `versions` are those of the last."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = {"WORLD_SIZE": str(len(changes)), "LOCAL_WORLD_SIZE": str(len(changes)), "MASTER_ADDR": "127.0.0.1"}
        given |= {"MASTER_PORT": str(port)} | environment
        folder = self._folder / f"run{len(self._ranks)}"
        command = ["--recipe", str(self._folder / "two.yaml"), "--output-dir", str(folder)]
        ranks = [
            {"environment": given | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, "arguments": [*command, *change]}
            for rank, change in enumerate(changes)
            if change is not None
        ]
        ranks[-1]["versions"] = versions or {}
        self._ranks.append(ranks)

    def run(self) -> list[list[dict[str, Any]]]:
        """Per launch and rank: code, seconds, said."""
        script = str(Path(__file__).parents[1] / "support" / "launch_processes.py")
        command = [sys.executable, script, str(self._folder), json.dumps(self._ranks)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(row) for row in done.stdout.splitlines()]


def changed(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


THREE = changed("hardware.num_devices=3", "batch.global_batch_size=12", "optimizer.lr=7.03125e-06")


def test_ranks_that_cannot_train_together(tiles_folder: Path, tmp_path: Path) -> None:
    cases, expected = Cases(tmp_path, tiles_folder), []
    cases.add([], changed("optimizer.weight_decay=0.2"))
    expected.append(
        ["error: rank 1 has optimizer.weight_decay=0.2 where rank 0 has 0.1; all ranks need one recipe"] * 2
    )
    cases.add(THREE, THREE, [*THREE, *changed("run.seed=1")])
    expected.append(["error: rank 2 has run.seed=1 where rank 0 has 0; all ranks need"] * 3)
    cases.add([], ["--resume"])
    expected.append(["error: rank 1 has --resume=True where rank 0 has False; all ranks need"] * 2)
    cases.add([], [], versions={"torch": "2.11.0"})
    expected.append(["error: rank 1 has torch=2.11.0 where rank 0 has"] * 2)
    one = changed("hardware.num_devices=1", "batch.accumulation_steps=4")
    wrong = "hardware.num_devices=1 but 2 processes were launched; launch with: accelerate launch"
    cases.add([], one)
    expected.append([f"error: rank 1 cannot begin: {wrong}", f"error: {wrong}"])
    cases.add(one, [])
    expected.append([f"error: {wrong}", f"error: rank 0 cannot begin: {wrong}"])
    cases.add(one, one)
    expected.append([f"error: {wrong}"] * 2)
    check(cases.run(), expected, most_seconds=10)


def test_ranks_that_never_meet(tiles_folder: Path, tmp_path: Path) -> None:
    cases, expected = Cases(tmp_path, tiles_folder), []
    cases.add([], None)
    expected.append(["error: rank 0 has waited 5 s at MASTER_ADDR=127.0.0.1 MASTER_PORT="])
    cases.add(THREE, THREE, None)
    expected.append(["for 3 processes, and rank 2 never came; see that they were started, with this address"] * 2)
    cases.add(None, [])
    expected.append(
        ["error: rank 1 of 2 has tried for 5 s to reach the meeting place, MASTER_ADDR=127.0.0.1 MASTER_PORT="]
    )
    cases.add(None, [], MASTER_ADDR="no.such.host.invalid", MASTER_PORT="29500")
    lost = (
        "the meeting place, MASTER_ADDR=no.such.host.invalid MASTER_PORT=29500, in vain (Name or service not known); s"
    )
    expected.append([f"error: rank 1 of 2 has tried for 5 s to reach {lost}"])
    cases.add([], None, MASTER_ADDR="no.such.host.invalid", MASTER_PORT="29500")
    expected.append([f"error: rank 0 of 2 has tried for 5 s to reach {lost}"])
    with closing(socket.create_server(("127.0.0.1", 0))) as stranger:
        cases.add([], None, MASTER_PORT=str(stranger.getsockname()[1]))
        expected.append(["another process has that port; MASTER_PORT="])
        begun = time.monotonic()
        check(cases.run(), expected, most_seconds=15)
    assert time.monotonic() - begun > 5


def check(told: list[list[dict[str, Any]]], expected: list[list[str]], most_seconds: float) -> None:
    assert len(told) == len(expected)
    for launched, lines in zip(told, expected, strict=True):
        for rank, line in zip(launched, lines, strict=True):
            print(rank)
            errors = [each for each in rank["said"].splitlines() if each.startswith("error: ")]
            assert rank["code"] == 2, rank
            assert len(errors) == 1
            assert line in errors[0]
            assert rank["seconds"] < most_seconds
            assert "Traceback" not in rank["said"]


def test_versions_of_what_only_reads_are_said_and_the_run_goes_on(tiles_folder: Path, tmp_path: Path) -> None:
    cases = Cases(tmp_path, tiles_folder)
    cases.add([], [], versions={"numpy": "1.0"})
    [ranks] = cases.run()
    assert [rank["code"] for rank in ranks] == [0, 0], ranks
    assert "rank 1 has numpy=1.0 where rank 0 has " in ranks[0]["said"]
    assert "numpy" not in ranks[1]["said"]
    assert (tmp_path / "run0" / "summary.json").is_file()
