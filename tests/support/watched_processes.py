"""Run training with planted faults; print a line of JSON per case: exit codes, seconds and output.

Each rank trains as the command does. argv: a folder with tiles, a folder for runs, and the cases in JSON.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from support.forked_ranks import MAX_SECONDS, fork, prepare
from support.recipes import small_recipe
from support.trainer_processes import free_port

from moco_accel.checkpoints import saver
from moco_accel.common.console import user_errors
from moco_accel.networks import moco
from moco_accel.processes.signals import StopRequest
from moco_accel.recipe.schema import Recipe
from moco_accel.training import loader, loop
from moco_accel.training import step as step_module
from moco_accel.training.run import run_training


@dataclass(frozen=True)
class Case:
    """`fault` happens on `rank` of `size` when it reaches `place` for the second time."""

    fault: str
    place: str = "average"
    rank: int = 1
    size: int = 2
    workers: int = 0
    stall_seconds: float = 8.0
    sharded: bool = False


def lock_forever() -> None:
    """Hang in a library that holds Python's lock, so that no thread of this process runs."""
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def loop_forever() -> None:
    while True:
        time.sleep(0.01)


def run_out_of_memory() -> None:
    raise torch.OutOfMemoryError("planted by a test")


def fail() -> None:
    raise ValueError("planted by a test")


FAULTS: dict[str, Callable[[], Any]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "exit": lambda: os._exit(0),
    "error": fail,
    "memory": run_out_of_memory,
    "crash": faulthandler._sigsegv,  # type: ignore[attr-defined]
    "loop": loop_forever,
    "slow": lambda: time.sleep(8),
    "lock": lock_forever,
}
PLACES: dict[str, tuple[Any, str]] = {
    "step": (loop, "train_step"),
    "average": (step_module, "average_over_processes"),
    "save": (saver, "write_checkpoint"),
    "model": (loop, "build_moco"),
    "tile": (loader, "make_crop"),  # of a tile that has been read for a step
    "forward": (moco, "encode"),
}
FIRST_CALL = ("model", "save", "forward")


def plant_fault(case: Case, happened: Path) -> None:
    """Let the fault happen before the function of the case's place; touch `happened` then."""
    owner, name = PLACES[case.place]
    function, calls = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == (1 if case.place in FIRST_CALL else 2):
            happened.touch()
            FAULTS[case.fault]()
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def train(case: Case, rank: int, port: int, tiles: str, run: Path) -> None:
    """Train as one rank."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if case.size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(case.size)}
    if case.fault != "nothing" and rank == case.rank:
        plant_fault(case, run.with_suffix(".happened"))
    recipe = make_recipe(case, tiles)
    with user_errors(), StopRequest() as stop:
        run_training(recipe, run, False, stop)


def make_recipe(case: Case, tiles: str) -> Recipe:
    recipe = small_recipe(
        encoder={"name": "vit_tiny_patch8", "image_size": 16},
        batch={"global_batch_size": 4 * case.size, "micro_batch_size": 2, "accumulation_steps": 2},
        hardware={"num_devices": case.size},
        memory={"fully_shard": case.sharded, "keep_last_micro_batch": not case.sharded},
        schedule={"epochs": 1},
        data={"source": tiles, "num_workers": case.workers},
        run={"log_every_steps": 1, "checkpoint_every_steps": 3},
    )
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"stall_seconds": case.stall_seconds})})


class Watched:
    """The running processes of a case, in a process group of their own."""

    def __init__(self, case: Case, number: int, tiles: str, folder: Path) -> None:
        self.case, self.run = case, folder / f"run{number}"
        self._tiles, self._port = tiles, free_port()
        self.ranks: list[int] = []
        for rank in range(case.size):
            self.ranks.append(fork(partial(self._train, rank), self.run.with_suffix(".log")))
            os.setpgid(self.ranks[-1], self.ranks[0])
        self.codes: dict[int, int] = {}
        self.ended_at = 0.0

    def _train(self, rank: int) -> None:
        os.setpgid(0, self.ranks[0] if rank else 0)
        train(self.case, rank, self._port, self._tiles, self.run)

    def has_ended(self) -> bool:
        """Return True once no process of the case is left, including loader workers."""
        for rank, process in enumerate(self.ranks):
            if rank in self.codes:
                continue
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                self.codes[rank] = os.waitstatus_to_exitcode(status)
        try:
            os.killpg(self.ranks[0], 0)
        except ProcessLookupError:
            self.ended_at = self.ended_at or time.time()
        return bool(self.ended_at)

    def result(self) -> dict[str, Any]:
        """Return exit codes by rank, output, and the seconds from the fault to the end."""
        happened = self.run.with_suffix(".happened")
        since = happened.stat().st_mtime if happened.exists() else self.ended_at
        output = self.run.with_suffix(".log").read_text()
        codes = [self.codes.get(rank) for rank in range(self.case.size)]
        return {"codes": codes, "seconds": round(self.ended_at - since, 2) if self.ended_at else None, "output": output}


def main() -> None:
    prepare()
    loop.build_moco(make_recipe(Case("nothing"), ""))  # imports all that the forks need
    cases = [Case(**case) for case in json.loads(sys.argv[3])]
    watched = [Watched(case, number, sys.argv[1], Path(sys.argv[2])) for number, case in enumerate(cases)]
    deadline = time.monotonic() + MAX_SECONDS
    while sum(each.has_ended() for each in watched) < len(watched) and time.monotonic() < deadline:
        time.sleep(0.02)
    for each in watched:
        if not each.ended_at:
            os.killpg(each.ranks[0], signal.SIGKILL)
        print(json.dumps(each.result()))


if __name__ == "__main__":
    main()
