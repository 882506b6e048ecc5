"""Control group: every rank receives the same result, at any number of ranks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.trainer_processes import ENVIRONMENT, TORCHRUN

SCRIPT = Path(__file__).parents[1] / "support" / "control_group_processes.py"


@pytest.mark.parametrize(
    ("size", "max_ranks_of_all_reduce"), [(3, 32), (2, 0), (3, 0), (5, 0)], ids=["all-reduce", "2", "3", "5"]
)
def test_every_rank_receives_the_same_result(size: int, max_ranks_of_all_reduce: int) -> None:
    """By one all-reduce or in rounds, also where the number of ranks is not a power of two."""
    command = [*TORCHRUN, f"--nproc_per_node={size}", str(SCRIPT), str(max_ranks_of_all_reduce)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [[[1, 2**size - 1]] * size + [[0, 0]]] * size
