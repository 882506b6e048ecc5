"""Run the trainer in its own processes: start it in several ways, wait for a phase, signal it, read its output."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from support.recipes import small_recipe

from moco_accel.recipe.load import save_recipe

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "moco_accel" / "train.py")
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
_ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
STARTS = {
    "python": [sys.executable],
    "accelerate": [_ACCELERATE, "launch", "--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml")],
    "torchrun": [*TORCHRUN, "--nproc_per_node=2"],
}


def launch(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=280, cwd=ROOT
    )


def command_line(recipe: Path, run: Path, *changes: str) -> list[str]:
    """Return the arguments of a run with `SECTION.FIELD=VALUE` changes."""
    overrides = [word for change in changes for word in ("--set", change)]
    return ["--recipe", str(recipe), "--output-dir", str(run), *overrides]


def train(recipe: Path, run: Path, *changes: str, resume: bool = False, processes: int = 1) -> str:
    """Train to the end, with `SECTION.FIELD=VALUE` changes; return what was printed to stderr."""
    command = [sys.executable] if processes == 1 else [*TORCHRUN, f"--nproc_per_node={processes}"]
    options = ["--resume"] if resume else []
    done = launch([*command, TRAIN], *command_line(recipe, run, *changes), *options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]


def logged_steps(run: Path) -> list[int]:
    return [row["step"] for row in rows(run)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def quick_recipe(folder: Path, tiles: Path, processes: int = 1, **run: int) -> Path:
    """Write a recipe whose steps take about 0.1 s, each logged; it runs longer than any test waits."""
    recipe = small_recipe(
        encoder={"name": "resnet10", "image_size": 32, "freeze_patch_projection": False},
        batch={"micro_batch_size": 8 // processes, "accumulation_steps": 1},
        hardware={"num_devices": processes},
        schedule={"epochs": 2000},
        data={"source": str(tiles), "num_workers": 2},
        run={"log_every_steps": 1, "checkpoint_every_steps": 100_000} | run,
    )
    save_recipe(recipe, folder / f"quick{processes}.yaml")
    return folder / f"quick{processes}.yaml"


def start_quick(folder: Path, tiles: Path, start: str, phase: str) -> Trainer:
    """Start `quick_recipe` in folder/run, with two processes under torchrun; save often if the phase is `save`."""
    every = {"checkpoint_every_steps": 2} if phase == "save" else {}
    return Trainer(start, folder / "run", quick_recipe(folder, tiles, 2 if start == "torchrun" else 1, **every))


class Trainer:
    """A trainer with its launcher and loader workers."""

    def __init__(self, start: str, run: Path, recipe: Path, *arguments: str) -> None:
        self.run, self._log = run, run.with_suffix(".log")
        command = [*STARTS[start], TRAIN, "--recipe", str(recipe), "--output-dir", str(run), *arguments]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=ENVIRONMENT, stdout=log, stderr=log, cwd=ROOT, preexec_fn=_restore_ctrl_c
            )

    def output(self) -> str:
        return self._log.read_text()

    def rows(self) -> int:
        metrics = self.run / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0

    def wait_for(self, happened: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, self.output()[-3000:]
            assert self.process.poll() is None, self.output()[-3000:]
            time.sleep(0.002)

    def wait_for_phase(self, phase: str) -> None:
        """Wait for `first batch`, `step` or `save`; a `save` needs frequent checkpoints."""
        happened = {
            "first batch": lambda: (self.run / "recipe.yaml").exists(),
            "step": lambda: self.rows() >= 2,
            "save": lambda: any((self.run / "checkpoints").glob("*.partial")),
        }
        self.wait_for(happened[phase])

    def ranks(self) -> list[int]:
        """Return the process ids of the ranks, without launchers and loader workers."""
        words = {pid: _command_line(pid) for pid in self.alive()}
        trainers = {pid for pid, found in words.items() if not {"launch", "torch.distributed.run"} & set(found)}
        return sorted(pid for pid in trainers if _parent(pid) not in trainers)

    def alive(self) -> list[int]:
        """Return all its process ids. torchrun starts a session for each rank, but all name the run's folder."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if str(self.run) in _command_line(pid) and _parent(pid) >= 0]

    def signal_all(self, number: signal.Signals) -> None:
        for pid in self.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def finish(self, seconds: float = 90) -> int:
        """Wait for all its processes; return the exit code of the first."""
        code = self.process.wait(seconds)
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not self.alive(), self.output()[-3000:]
        return code

    def kill(self) -> None:
        self.signal_all(signal.SIGKILL)
        self.process.wait()


def _restore_ctrl_c() -> None:
    """A shell starts background jobs with SIGINT ignored, and their processes inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    """Return the parent's process id; -1 for a process that has ended or is a zombie."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return -1
    return -1 if state in "ZX" else int(parent)
