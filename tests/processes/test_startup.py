"""Launches whose ranks differ or never connect: each rank ends with one line and exit code 2."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from support.recipes import small_recipe
from support.trainer_processes import ENVIRONMENT, free_port

from moco_accel.recipe.load import save_recipe

SCRIPT = Path(__file__).parents[1] / "support" / "launch_processes.py"


class Launches:
    """Launches of a recipe for two processes, run all at once."""

    def __init__(self, folder: Path, tiles: Path, rendezvous_seconds: int = 5) -> None:
        self._folder, self._ranks = folder, list[list[dict[str, Any]]]()
        recipe = small_recipe(
            batch={"micro_batch_size": 2, "accumulation_steps": 2},
            hardware={"num_devices": 2},
            data={"source": str(tiles)},
            schedule={"epochs": 1},
            evaluation={"every_epochs": None},
            run={"rendezvous_seconds": rendezvous_seconds},
        )
        save_recipe(recipe, folder / "two.yaml")

    def add(self, *changes: list[str] | None, versions: dict[str, str] | None = None, **environment: str) -> None:
        """Add a launch.

        Args:
            changes: Options of each rank; None: it is not started.
            versions: Library versions of the last rank.
        """
        size = str(len(changes))
        variables = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
        variables |= {"MASTER_PORT": str(free_port())} | environment
        folder = self._folder / f"run{len(self._ranks)}"
        command = ["--recipe", str(self._folder / "two.yaml"), "--output-dir", str(folder)]
        ranks = [
            {"environment": variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, "arguments": [*command, *change]}
            for rank, change in enumerate(changes)
            if change is not None
        ]
        ranks[-1]["versions"] = versions or {}
        self._ranks.append(ranks)

    def run(self) -> list[list[dict[str, Any]]]:
        """Return code, seconds and output, by launch and rank."""
        command = [sys.executable, str(SCRIPT), str(self._folder), json.dumps(self._ranks)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(row) for row in done.stdout.splitlines()]


def changed(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


THREE = changed("hardware.num_devices=3", "batch.global_batch_size=12", "optimizer.lr=7.03125e-06")


def check(results: list[list[dict[str, Any]]], expected: list[list[str]], max_seconds: float) -> None:
    assert len(results) == len(expected)
    for launched, lines in zip(results, expected, strict=True):
        for rank, line in zip(launched, lines, strict=True):
            print(rank)
            errors = [each for each in rank["output"].splitlines() if each.startswith("error: ")]
            assert rank["code"] == 2, rank
            assert len(errors) == 1
            assert line in errors[0]
            assert rank["seconds"] < max_seconds
            assert "Traceback" not in rank["output"]


def test_ranks_that_cannot_train_together(tiles_folder: Path, tmp_path: Path) -> None:
    # 15 processes on a busy machine: the first rank of three may take longer than 5 s to listen
    launches, expected = Launches(tmp_path, tiles_folder, rendezvous_seconds=20), []
    launches.add([], changed("optimizer.weight_decay=0.2"))
    expected.append(
        ["error: rank 1 has optimizer.weight_decay=0.2 where rank 0 has 0.1; all ranks need one recipe"] * 2
    )
    launches.add(THREE, THREE, [*THREE, *changed("run.seed=1")])
    expected.append(["error: rank 2 has run.seed=1 where rank 0 has 0; all ranks need"] * 3)
    launches.add([], ["--resume"])
    expected.append(["error: rank 1 has --resume=True where rank 0 has False; all ranks need"] * 2)
    launches.add([], [], versions={"torch": "2.11.0"})
    expected.append(["error: rank 1 has torch=2.11.0 where rank 0 has"] * 2)
    one = changed("hardware.num_devices=1", "batch.accumulation_steps=4")
    wrong = "hardware.num_devices=1 but 2 processes were launched; launch with: accelerate launch"
    launches.add([], one)
    expected.append([f"error: rank 1 cannot start: {wrong}", f"error: {wrong}"])
    launches.add(one, [])
    expected.append([f"error: {wrong}", f"error: rank 0 cannot start: {wrong}"])
    launches.add(one, one)
    expected.append([f"error: {wrong}"] * 2)
    check(launches.run(), expected, max_seconds=20)


def test_ranks_that_never_connect(tiles_folder: Path, tmp_path: Path) -> None:
    launches, expected = Launches(tmp_path, tiles_folder), []
    launches.add([], None)
    expected.append(["error: rank 0 waited 5 s at MASTER_ADDR=127.0.0.1 MASTER_PORT="])
    launches.add(THREE, THREE, None)
    expected.append(
        ["for 3 processes, and rank 2 never connected; check that they were started, with this address"] * 2
    )
    unreachable = "could not reach the rendezvous at MASTER_ADDR="
    launches.add(None, [])
    expected.append([f"error: rank 1 of 2 {unreachable}127.0.0.1 MASTER_PORT="])
    launches.add(None, [], MASTER_ADDR="no.such.host.invalid", MASTER_PORT="29500")
    unknown = "no.such.host.invalid MASTER_PORT=29500 within 5 s (Name or service not known); check"
    expected.append([f"error: rank 1 of 2 {unreachable}{unknown}"])
    launches.add([], None, MASTER_ADDR="no.such.host.invalid", MASTER_PORT="29500")
    expected.append([f"error: rank 0 of 2 {unreachable}{unknown}"])
    with closing(socket.create_server(("127.0.0.1", 0))) as stranger:
        launches.add([], None, MASTER_PORT=str(stranger.getsockname()[1]))
        expected.append(["another process has that port; MASTER_PORT="])
        begun = time.monotonic()
        check(launches.run(), expected, max_seconds=15)
    assert time.monotonic() - begun > 5


def test_versions_that_compute_no_weights_may_differ(tiles_folder: Path, tmp_path: Path) -> None:
    launches = Launches(tmp_path, tiles_folder)
    launches.add([], [], versions={"numpy": "1.0"})
    [ranks] = launches.run()
    assert [rank["code"] for rank in ranks] == [0, 0], ranks
    assert "rank 1 has numpy=1.0 where rank 0 has " in ranks[0]["output"]
    assert "numpy" not in ranks[1]["output"]
    assert (tmp_path / "run0" / "summary.json").is_file()
