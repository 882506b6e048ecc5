"""A full disk ends both ranks of a run with one line each."""

from __future__ import annotations

import resource
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

from support.trainer_processes import ENVIRONMENT, ROOT, STARTS, TRAIN, command_line, quick_recipe

_MODEL_LIMIT, _LOG_LIMIT = 20_000_000, 8_000  # limits in bytes; the networks need 40 million, 20 rows 8 thousand


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def errors_of_a_run(folder: Path, tiles: Path, size: int, **run: int) -> list[str]:
    """Run two ranks that can write no file larger than `size` bytes; return their errors."""
    recipe = quick_recipe(folder, tiles, 2, **run)
    no_workers = "data.num_workers=0"  # shared memory counts as files
    command = [*STARTS["torchrun"], TRAIN, *command_line(recipe, folder / "run", no_workers)]
    start, limit = time.monotonic(), partial(_limit_files, size)
    result = subprocess.run(
        command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=250, preexec_fn=limit
    )
    assert result.returncode != 0
    assert time.monotonic() - start < 120
    assert "train.py FAILED" in result.stderr  # the launcher's own report
    assert "exitcode  : 2" in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2, result.stderr[-3000:]
    assert any(line.startswith("error: rank 0 could not write") for line in errors)
    return errors


def test_no_space_for_a_checkpoint(tmp_path: Path, tiles_folder: Path) -> None:
    errors = errors_of_a_run(tmp_path, tiles_folder, _MODEL_LIMIT, checkpoint_every_steps=2)
    assert any("step_00000002 cannot be written (File too large); nothing is saved yet" in line for line in errors)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_no_space_for_a_row_of_metrics(tmp_path: Path, tiles_folder: Path) -> None:
    errors = errors_of_a_run(tmp_path, tiles_folder, _LOG_LIMIT)
    assert any(
        "metrics.jsonl cannot be written (File too large). Free some space on that disk" in line for line in errors
    )
    assert len((tmp_path / "run" / "metrics.jsonl").read_bytes()) == _LOG_LIMIT
