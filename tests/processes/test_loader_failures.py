"""A loader worker that fails ends the run within seconds and in one line; a small /dev/shm is refused at the start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.recipes import small_recipe
from support.trainer_processes import ENVIRONMENT, ROOT, TRAIN, Trainer, command_line, quick_recipe, start_quick

from moco_accel.processes.diagnosis import describe_loader_error
from moco_accel.recipe.load import save_recipe
from moco_accel.recipe.schema import Recipe
from moco_accel.training.shared_memory import shared_bytes

UNSHARE = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-r", "-m"]
# runs a command where /dev/shm has $1 KiB; fills it once the file $2 exists
SMALL = (
    'mount -t tmpfs -o size="$1"k tmpfs /dev/shm || exit 99; log=$2; shift 2; '
    '(until [ -s "$log" ]; do sleep 0.05; done; '
    "while sleep 0.01; do cat /dev/zero >> /dev/shm/full; done 2>/dev/null) & "
    '"$@"; code=$?; kill $!; exit $code'
)


def missing_requirement() -> str:
    """Return why a process cannot have its own /dev/shm here; empty if it can."""
    if sys.platform != "linux":
        return "not Linux"
    tried = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "x", "/dev/shm"], capture_output=True, text=True)
    return tried.stderr.strip()


needs_own_shm = pytest.mark.skipif(bool(missing_requirement()), reason=missing_requirement())


def large_crops(tiles: Path, **run: int) -> Recipe:
    """Return a recipe of 5 steps with two micro-batches of 2 × 4 × 3 × 160² bytes."""
    return small_recipe(
        encoder={"name": "resnet10", "image_size": 160, "freeze_patch_projection": False},
        schedule={"epochs": 1, "warmup_epochs": 0},
        data={"source": str(tiles), "num_workers": 2},
        evaluation={"every_epochs": None},
        run={"log_every_steps": 1} | run,
    )


def train_in(kib: int, recipe: Recipe, run: Path, *changes: str, fill: bool = False) -> tuple[int, str, float]:
    """Train where /dev/shm has `kib` KiB; return the exit code, what was printed to stderr, and the seconds."""
    save_recipe(recipe, run.with_suffix(".yaml"))
    log = str(run / "metrics.jsonl" if fill else run / "never")
    command = [sys.executable, TRAIN, *command_line(run.with_suffix(".yaml"), run, *changes)]
    begun = time.monotonic()
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", SMALL, "sh", str(kib), log, *command],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    return done.returncode, done.stderr, time.monotonic() - begun


@needs_own_shm
def test_too_little_shared_memory_is_refused_before_the_first_step(tiles_folder: Path, tmp_path: Path) -> None:
    code, printed, _ = train_in(2048, large_crops(tiles_folder), tmp_path / "run")
    assert code == 2, printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    free = "2.0" if "2.0 MiB" in printed else "1.9"  # less what others hold
    assert errors == [
        "error: data.num_workers=2: micro-batches that the loader workers have loaded take up to 3.7 MiB of shared "
        f"memory, and /dev/shm has {free} MiB free; docker run --shm-size=2g gives a container more, --set "
        "data.num_workers=0 works without it"
    ]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
@needs_own_shm
def test_a_run_fits_into_what_the_check_asks_for(tiles_folder: Path, tmp_path: Path) -> None:
    recipe = large_crops(tiles_folder)
    needed = shared_bytes(recipe, on_gpu=False)
    assert needed == 2 * 4 * 3 * 160 * 160 * (2 * 2 + 2) + 2 * 65_536
    kib = -(-needed // 1024)
    code, printed, _ = train_in(kib + 4, recipe, tmp_path / "run")
    assert code == 0, printed
    assert train_in(kib - 16, recipe, tmp_path / "less")[0] == 2
    code, printed, _ = train_in(kib - 16, recipe, tmp_path / "less", "data.num_workers=0")
    assert code == 0, printed


def test_the_needed_bytes_follow_recipe_and_device() -> None:
    recipe = small_recipe(data={"num_workers": 3}, batch={"micro_batch_size": 1, "accumulation_steps": 8})
    assert shared_bytes(recipe, on_gpu=False) == 2 * 3 * 16 * 16 * (3 * 3 + 8) + 3 * 65_536
    assert shared_bytes(recipe, on_gpu=True) == 2 * 3 * 16 * 16 * (3 * 3 + 1) + 3 * 65_536
    of_float16 = small_recipe(data={"num_workers": 3, "scaling": "reflectance"})
    assert shared_bytes(of_float16, on_gpu=True) == 2 * 4 * 3 * 16 * 16 * 2 * (3 * 2 + 1) + 3 * 65_536
    assert shared_bytes(small_recipe(data={"num_workers": 0}), on_gpu=False) == 0


@needs_own_shm
def test_shared_memory_that_fills_up_later_ends_the_run_in_one_line(tiles_folder: Path, tmp_path: Path) -> None:
    recipe = large_crops(tiles_folder).model_copy(update={"schedule": small_recipe(schedule={"epochs": 500}).schedule})
    code, printed, seconds = train_in(6144, recipe, tmp_path / "run", fill=True)
    assert code == 2, printed
    assert seconds < 40
    errors = [line for line in printed.splitlines() if line.startswith("error")]
    assert len(errors) == 1, printed
    assert "No space left on device (28); shared memory (/dev/shm) is full: docker run --shm-size=2g gives" in errors[0]
    assert "Traceback" not in printed


def workers_of(trainer: Trainer) -> list[int]:
    rank = trainer.ranks()[0]
    return [int(child) for child in Path(f"/proc/{rank}/task/{rank}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_killed_worker_ends_the_run_within_seconds(tiles_folder: Path, tmp_path: Path) -> None:
    trainer = start_quick(tmp_path, tiles_folder, "python", "step")
    try:
        trainer.wait_for_phase("step")
        worker = workers_of(trainer)[0]
        os.kill(worker, signal.SIGKILL)
        begun = time.monotonic()
        assert trainer.finish(20) == 2
        assert time.monotonic() - begun < 15
    finally:
        trainer.kill()
    errors = [line for line in trainer.output().splitlines() if line.startswith("error")]
    assert len(errors) == 1, trainer.output()
    assert errors[0].startswith(f"error: loader worker {worker} died")
    assert ": Killed; " in errors[0]
    assert "Traceback" not in trainer.output()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_signal_ends_the_wait_for_workers_that_hang(tiles_folder: Path, tmp_path: Path) -> None:
    """The steps that are done are saved, and the run can resume."""
    recipe = quick_recipe(tmp_path, tiles_folder)
    trainer = Trainer("python", tmp_path / "run", recipe)
    try:
        trainer.wait_for_phase("step")
        for worker in workers_of(trainer):
            os.kill(worker, signal.SIGSTOP)
        before = -1
        while before != trainer.rows():  # until all that was loaded is used up
            before = trainer.rows()
            time.sleep(1.5)
        os.kill(trainer.ranks()[0], signal.SIGTERM)
        begun = time.monotonic()
        assert trainer.finish(20) == 0
        assert time.monotonic() - begun < 10
    finally:
        trainer.kill()
    assert f"stopped by SIGTERM, saved after step {before}; resume with:" in trainer.output()
    assert (tmp_path / "run" / "checkpoints" / f"step_{before:08d}").is_dir()
    assert "Traceback" not in trainer.output()


def caught(kind: str, text: str) -> RuntimeError:
    """Return an error as DataLoader passes it on."""
    trace = f'Original Traceback (most recent call last):\n  File "a.py", line 1\n{kind}: {text}\n'
    return RuntimeError(f"Caught {kind} in DataLoader worker process 3.\n{trace}")


@pytest.mark.parametrize(
    ("error", "message", "has_traceback"),
    [
        (caught("OSError", "[Errno 24] Too many open files"), "ulimit -n 65536 before the launch allows more", False),
        (RuntimeError("received 0 items of ancdata"), "tiles cannot be passed on: received 0 items of", False),
        (caught("OSError", "[Errno 5] Input/output error"), "loader worker 3 failed: OSError: [Errno 5] Input", True),
        (caught("UserError", "data.scaling=uint8 but …; x works"), "data.scaling=uint8 but …; x works", False),
    ],
)
def test_errors_of_workers_have_one_line(error: Exception, message: str, has_traceback: bool) -> None:
    found = describe_loader_error(error)
    assert found is not None
    assert message in found[0]
    assert bool(found[1]) == has_traceback
    assert describe_loader_error(ValueError("gloo")) is None
