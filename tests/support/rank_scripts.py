"""Run a script of this folder on several gloo ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.trainer_processes import ENVIRONMENT, TORCHRUN


def run_ranks(script: str, count: int, *arguments: str, seconds: int = 240) -> Any:
    """Run `script` on `count` ranks and return the JSON of its last line; 0 ranks means no launcher."""
    launcher = [*TORCHRUN, f"--nproc_per_node={count}"] if count else [sys.executable]
    command = [*launcher, str(Path(__file__).parent / script), *arguments]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds)
    assert result.returncode == 0, result.stderr[-5000:]
    return json.loads(result.stdout.strip().splitlines()[-1])
