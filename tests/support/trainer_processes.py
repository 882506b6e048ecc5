"""The trainer in processes of its own: started in every way, awaited at some point, told to stop, looked at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from support.recipes import small_recipe

from moco_accel.recipe.load import save_recipe

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "moco_accel" / "train.py")
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
_BIN = Path(sys.executable).parent
STARTS = {
    "python": [sys.executable],
    "accelerate": [str(_BIN / "accelerate"), "launch", "--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml")],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
}


def quick_recipe(folder: Path, tiles: Path, processes: int = 1, **run: int) -> Path:
    """Steps of some 0.1 s, each logged, for longer than any test waits."""
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
    """Of `quick_recipe`, in folder/run; on two processes under torchrun. It saves often where the phase is `save`."""
    every = {"checkpoint_every_steps": 2} if phase == "save" else {}
    return Trainer(start, folder / "run", quick_recipe(folder, tiles, 2 if start == "torchrun" else 1, **every))


class Trainer:
    """A trainer with its launcher and loader workers."""

    def __init__(self, start: str, run: Path, recipe: Path, *arguments: str) -> None:
        self.run, self._log = run, run.with_suffix(".log")
        command = [*STARTS[start], TRAIN, "--recipe", str(recipe), "--output-dir", str(run), *arguments]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=ENVIRONMENT, stdout=log, stderr=log, cwd=ROOT, preexec_fn=_heed_ctrl_c
            )

    def said(self) -> str:
        return self._log.read_text()

    def rows(self) -> int:
        metrics = self.run / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0

    def wait_for(self, happened: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, self.said()[-3000:]
            assert self.process.poll() is None, self.said()[-3000:]
            time.sleep(0.002)

    def wait_for_phase(self, phase: str) -> None:
        """`first batch`, `step`, or `save`, for which it has to save often."""
        happened = {
            "first batch": lambda: (self.run / "recipe.yaml").exists(),
            "step": lambda: self.rows() >= 2,
            "save": lambda: any((self.run / "checkpoints").glob("*.partial")),
        }
        self.wait_for(happened[phase])

    def ranks(self) -> list[int]:
        """The trainers: neither launchers nor loader workers."""
        words = {pid: _words(pid) for pid in self.alive()}
        trainers = {pid for pid, found in words.items() if not {"launch", "torch.distributed.run"} & set(found)}
        return sorted(pid for pid in trainers if _parent(pid) not in trainers)

    def alive(self) -> list[int]:
        """All its processes: torchrun puts each rank into a session of its own, but all name the run's folder."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if str(self.run) in _words(pid) and _parent(pid) >= 0]

    def signal_all(self, number: signal.Signals) -> None:
        for pid in self.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def finish(self, seconds: float = 90) -> int:
        """Wait for all its processes; the exit code of the one that was started."""
        code = self.process.wait(seconds)
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not self.alive(), self.said()[-3000:]
        return code

    def kill(self) -> None:
        self.signal_all(signal.SIGKILL)
        self.process.wait()


def logged_steps(run: Path) -> list[int]:
    return [json.loads(row)["step"] for row in (run / "metrics.jsonl").read_text().splitlines()]


def _heed_ctrl_c() -> None:
    """Tests in the background of a shell are started with SIGINT ignored, and so would be what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """State, parent, …; empty for one that is gone or only waits to be reaped."""
    try:
        found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if found[0] in "ZX" else found


def _parent(pid: int) -> int:
    return int(stat[1]) if (stat := _stat(pid)) else -1
