"""All processes hear the same of all, few or many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.parametrize(("size", "few"), [(3, 32), (2, 0), (3, 0), (5, 0)], ids=["few", "2", "3", "5"])
def test_every_word_reaches_every_process(size: int, few: int) -> None:
    """In one all-reduce, or in rounds, whether or not they are a power of two."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT.parent)}
    command = [sys.executable, *launch, str(SUPPORT / "control_group_processes.py"), str(few)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [[1, 2**size - 1]] * size + [[0, 0]]
    assert json.loads(done.stdout) == [told] * size
