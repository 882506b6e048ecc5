"""Launches that cannot begin, or barely, and what each rank says and ends with: a line of JSON for each case.

All ranks are forks of this process, so that torch is imported once; each runs the command as it was typed. argv: a
folder for logs, and the cases in JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from moco_accel import train
from moco_accel.common.console import run_command
from moco_accel.networks import encoders
from moco_accel.processes import launch_consistency
from moco_accel.training import loop

MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Rank:
    """One process: what its launcher tells it, what is typed, and versions that it is made to have."""

    environment: dict[str, str]
    arguments: list[str]
    versions: dict[str, str] = field(default_factory=dict)


def be(rank: Rank) -> None:
    os.environ |= rank.environment
    sys.argv = ["moco_accel/train.py", *rank.arguments]
    versions = launch_consistency.versions() | rank.versions
    launch_consistency.versions = lambda: versions  # type: ignore[attr-defined]
    run_command(train.app)


def start(rank: Rank, log: Path) -> int:
    process = os.fork()
    if process:
        return process
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 1
    try:
        be(rank)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    os._exit(code)


def await_all(processes: dict[int, float | None], codes: dict[int, int]) -> None:
    """Fills in when each ended, and how."""
    begun = time.monotonic()
    while None in processes.values() and time.monotonic() - begun < MOST_SECONDS:
        for process, seconds in processes.items():
            if seconds is None and (found := os.waitpid(process, os.WNOHANG))[0]:
                processes[process], codes[process] = time.monotonic() - begun, os.waitstatus_to_exitcode(found[1])
        time.sleep(0.01)


def main() -> None:
    torch.set_num_threads(1)
    encoders._VIT_SIZES["tiny"] = (192, 1, 3)
    Image.preinit()
    assert loop.run_training
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    processes: dict[int, float | None] = {}
    codes: dict[int, int] = {}
    logs: dict[int, Path] = {}
    started: list[list[int]] = []
    for number, case in enumerate(cases):
        started.append([])
        for rank, words in enumerate(case):
            log = folder / f"{number}.{rank}.log"
            process = start(Rank(**words), log)
            started[-1].append(process)
            processes[process], logs[process] = None, log
    await_all(processes, codes)
    for case in started:
        print(json.dumps([told(process, codes.get(process), processes[process], logs[process]) for process in case]))


def told(process: int, code: int | None, seconds: float | None, log: Path) -> dict[str, Any]:
    if code is None:
        os.kill(process, 9)
    return {"code": code, "seconds": seconds, "said": log.read_text()}


if __name__ == "__main__":
    main()
