"""Two processes, and a disk that is full: both end with one line, neither waits for the other."""

from __future__ import annotations

import resource
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

from support.trainer_processes import ENVIRONMENT, ROOT, STARTS, TRAIN, quick_recipe

_NETWORKS, _ROWS = 20_000_000, 8_000  # bytes of a file; the networks take 40 million, twenty rows 8 thousand


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def errors_of_a_run(folder: Path, tiles: Path, size: int, **run: int) -> list[str]:
    """Of two processes that can write no file of more than `size` bytes."""
    recipe = quick_recipe(folder, tiles, 2, **run)
    command = [*STARTS["torchrun"], TRAIN, "--recipe", str(recipe), "--output-dir", str(folder / "run")]
    command += ["--set", "data.num_workers=0"]  # shared memory is made of files, too
    started, limit = time.monotonic(), partial(_limit_files, size)
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=250, preexec_fn=limit
    )
    assert done.returncode != 0
    assert time.monotonic() - started < 120
    assert "train.py FAILED" in done.stderr  # the launcher's own account
    assert "exitcode  : 2" in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2, done.stderr[-3000:]
    assert any(line.startswith("error: the first process could not write") for line in errors)
    return errors


def test_no_room_for_a_checkpoint(tmp_path: Path, tiles_folder: Path) -> None:
    errors = errors_of_a_run(tmp_path, tiles_folder, _NETWORKS, checkpoint_every_steps=2)
    assert any("step_00000002 cannot be written (File too large); nothing is saved yet" in line for line in errors)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_no_room_for_a_row_of_the_log(tmp_path: Path, tiles_folder: Path) -> None:
    errors = errors_of_a_run(tmp_path, tiles_folder, _ROWS)
    assert any("metrics.jsonl cannot be written (File too large). Room on that disk" in line for line in errors)
    assert len((tmp_path / "run" / "metrics.jsonl").read_bytes()) == _ROWS
