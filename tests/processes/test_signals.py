"""SIGTERM and SIGINT to a rank, the launcher or all: the step is finished, the run saved, and no process is left."""

from __future__ import annotations

import itertools
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.trainer_processes import ENVIRONMENT, ROOT, Trainer, logged_steps, quick_recipe, start_quick

from moco_accel.checkpoints.run_folder import newest_intact

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

TARGETS = ("rank", "launcher", "group")
PHASES = ("first batch", "step", "save")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def stop_one(tmp_path: Path, tiles: Path, start: str, number: signal.Signals, target: str, phase: str) -> None:
    """Send the signal in the phase; compare the saved step with the logged ones."""
    trainer = start_quick(tmp_path, tiles, start, phase)
    try:
        trainer.wait_for_phase(phase)
        if phase == "step":
            time.sleep(random.Random(str(tmp_path)).uniform(0, 0.3))
        if target == "group":
            trainer.signal_all(number)
        else:
            os.kill(trainer.process.pid if target == "launcher" else trainer.ranks()[-1], number)
        code = trainer.finish()
    finally:
        trainer.kill()
    output = trainer.output()
    if target == "rank":
        assert "Traceback" not in output, output[-3000:]
    # a launcher that got the signal itself has its own exit code
    assert code == 0 or (target != "rank" and start != "python"), output[-3000:]
    found = newest_intact(tmp_path / "run", print)
    steps = logged_steps(tmp_path / "run") if (tmp_path / "run" / "metrics.jsonl").exists() else []
    assert steps == list(range(found.state.step if found else 0)), output[-3000:]
    stopped = [line for line in output.splitlines() if line.startswith("stopped by")]
    assert len(stopped) == 1, output[-3000:]
    assert stopped[0].endswith(", before the first step was done; resume with:" if found is None else "resume with:")
    command = output.splitlines()[output.splitlines().index(stopped[0]) + 1]
    assert command.endswith("--resume")


@pytest.mark.parametrize(
    ("start", "number", "target", "phase"),
    [
        ("accelerate", signal.SIGTERM, "launcher", "save"),
        ("torchrun", signal.SIGINT, "rank", "step"),
    ],
)
def test_a_signal_saves_and_ends_a_run(
    start: str, number: signal.Signals, target: str, phase: str, tmp_path: Path, tiles_folder: Path
) -> None:
    stop_one(tmp_path, tiles_folder, start, number, target, phase)


CASES = list(itertools.product(("torchrun", "accelerate"), SIGNALS, TARGETS, PHASES))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", range(100))
def test_a_hundred_signals(case: int, tmp_path: Path, tiles_folder: Path) -> None:
    """Try each start, signal, target and phase in turn, at varying times within the phase."""
    stop_one(tmp_path, tiles_folder, *CASES[case % len(CASES)])


def test_the_printed_command_resumes(tmp_path: Path, tiles_folder: Path) -> None:
    """Also from a folder with a space in its name."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    trainer = Trainer("accelerate", folder / "run", quick_recipe(folder, tiles_folder))
    trainer.wait_for(lambda: trainer.rows() >= 1)
    os.kill(trainer.ranks()[0], signal.SIGTERM)
    assert trainer.finish() == 0
    done = len(logged_steps(folder / "run"))
    command = trainer.output().splitlines()[-1]
    assert "accelerate launch --config_file" in command
    assert shlex.split(command)[-1] == "--resume"
    with (folder / "again").open("w") as log:
        again = subprocess.Popen(["bash", "-c", command], env=ENVIRONMENT, cwd=ROOT, stderr=log)
    deadline = time.monotonic() + 120
    while len(logged_steps(folder / "run")) < done + 2:
        assert time.monotonic() < deadline
        assert again.poll() is None, (folder / "again").read_text()
        time.sleep(0.05)
    again.terminate()
    again.wait(60)
    while "stopped by" not in (folder / "again").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert f"resumed after step {done}" in (folder / "again").read_text()
    steps = logged_steps(folder / "run")
    assert steps == list(range(len(steps)))
    assert len(steps) >= done + 2


_HANGS = """
import ctypes
from moco_accel.processes.signals import StopRequest
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with StopRequest():
    libc.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
"""


def test_ctrl_c_again_stops_at_once_and_prints_what_is_lost() -> None:
    """Also while the process hangs outside Python, where Python's handlers would wait. One press may arrive twice."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HANGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(2):  # from the terminal, and passed on by the launcher
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert process.poll() is None
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    lost = "nothing is saved yet, so the whole run is lost"
    assert process.returncode == 130
    assert errors.splitlines() == [
        f"SIGINT: saving and stopping after this step; Ctrl-C again stops at once ({lost})",
        f"stopped at once: {lost}",
    ]
