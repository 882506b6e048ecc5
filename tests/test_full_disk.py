"""Two processes, and a disk that takes no checkpoint: both end with one line, neither waits for the other."""

from __future__ import annotations

import resource
import signal
import subprocess
import time
from pathlib import Path

from trainer_processes import ENVIRONMENT, ROOT, STARTS, TRAIN, quick_recipe

_LIMIT = 20_000_000  # bytes of a file; the networks take 40 million


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT, _LIMIT))
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_full_disk_ends_both_processes_with_one_line_each(tmp_path: Path, tiles_folder: Path) -> None:
    recipe = quick_recipe(tmp_path, tiles_folder, 2, checkpoint_every_steps=2)
    command = [*STARTS["torchrun"], TRAIN, "--recipe", str(recipe), "--output-dir", str(tmp_path / "run")]
    started = time.monotonic()
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=250, preexec_fn=_limit_files
    )
    assert done.returncode != 0
    assert time.monotonic() - started < 120
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2, done.stderr[-3000:]
    assert any("step_00000002 cannot be written (File too large); nothing is saved yet" in line for line in errors)
    assert any(line.startswith("error: the first process could not write") for line in errors)
    assert "train.py FAILED" in done.stderr  # the launcher's own account
    assert "exitcode  : 2" in done.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
