"""Run launches that fail, or nearly do; print a line of JSON per case: exit code, seconds and output of each rank.

Each rank runs the command as a user types it. argv: a folder for logs, and the cases in JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from support.forked_ranks import MAX_SECONDS, fork, prepare

from moco_accel import train
from moco_accel.common.console import run_command
from moco_accel.processes import launch_consistency
from moco_accel.training import run


@dataclass(frozen=True)
class Rank:
    """The launcher's environment variables, the command line, and library versions to pretend."""

    environment: dict[str, str]
    arguments: list[str]
    versions: dict[str, str] = field(default_factory=dict)


def run_rank(rank: Rank) -> None:
    os.environ |= rank.environment
    sys.argv = ["moco_accel/train.py", *rank.arguments]
    versions = launch_consistency.library_versions() | rank.versions
    launch_consistency.library_versions = lambda: versions
    run_command(train.app)


def await_all(processes: dict[int, float | None], codes: dict[int, int]) -> None:
    """Fill in the seconds until each process ended, and its exit code."""
    begun = time.monotonic()
    while None in processes.values() and time.monotonic() - begun < MAX_SECONDS:
        for process, seconds in processes.items():
            if seconds is None and (found := os.waitpid(process, os.WNOHANG))[0]:
                processes[process], codes[process] = time.monotonic() - begun, os.waitstatus_to_exitcode(found[1])
        time.sleep(0.01)


def main() -> None:
    prepare()
    assert run.run_training
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    processes: dict[int, float | None] = {}
    codes: dict[int, int] = {}
    logs: dict[int, Path] = {}
    started: list[list[int]] = []
    for number, case in enumerate(cases):
        started.append([])
        for rank, fields in enumerate(case):
            log = folder / f"{number}.{rank}.log"
            process = fork(partial(run_rank, Rank(**fields)), log)
            started[-1].append(process)
            processes[process], logs[process] = None, log
    await_all(processes, codes)
    for case in started:
        print(json.dumps([result(process, codes.get(process), processes[process], logs[process]) for process in case]))


def result(process: int, code: int | None, seconds: float | None, log: Path) -> dict[str, Any]:
    if code is None:
        os.kill(process, 9)
    return {"code": code, "seconds": seconds, "output": log.read_text()}


if __name__ == "__main__":
    main()
