"""Runs in which something goes wrong, and how their processes end: one line of JSON for each case.

All ranks are forks of this process, so that torch is imported once; each trains as the command does. argv: a folder
with tiles, a folder for runs, and the cases in JSON.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from support.recipes import small_recipe

from moco_accel.checkpoints import saver
from moco_accel.common.console import user_errors
from moco_accel.networks import encoders
from moco_accel.processes.signals import StopRequest
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.tiles import Tiles
from moco_accel.training import loop
from moco_accel.training import step as step_module

MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Case:
    """`what` happens on `rank` of `size`, the second time that it comes to `place`."""

    what: str
    place: str = "average"
    rank: int = 1
    size: int = 2
    workers: int = 0
    stall_seconds: float = 8.0
    divided: bool = False


def lock_for_ever() -> None:
    """In a library that keeps Python's lock meanwhile: no thread of this process goes on."""
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def loop_for_ever() -> None:
    while True:
        time.sleep(0.01)


def lack_memory() -> None:
    raise torch.OutOfMemoryError("as a test has it")


def fail() -> None:
    raise ValueError("as a test has it")


FAULTS: dict[str, Callable[[], Any]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "exit": lambda: os._exit(0),
    "error": fail,
    "memory": lack_memory,
    "crash": faulthandler._sigsegv,  # type: ignore[attr-defined]
    "loop": loop_for_ever,
    "lock": lock_for_ever,
}
PLACES: dict[str, tuple[Any, str]] = {
    "step": (loop, "train_step"),
    "average": (step_module, "average_over_processes"),
    "save": (saver, "write_checkpoint"),
    "model": (loop, "build_moco"),
    "tile": (Tiles, "__getitem__"),
}
FIRST_TIME = ("model", "save")


def lay(case: Case, happened: Path) -> None:
    """Where it happens: before a function, which then is called if it still can be."""
    owner, name = PLACES[case.place]
    function, calls = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == (1 if case.place in FIRST_TIME else 2):
            happened.touch()
            FAULTS[case.what]()
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def train(case: Case, rank: int, port: int, tiles: str, run: Path) -> None:
    """What a rank does."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if case.size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(case.size)}
    if case.what != "nothing" and rank == case.rank:
        lay(case, run.with_suffix(".happened"))
    recipe = recipe_of(case, tiles)
    with user_errors(), StopRequest() as stop:
        loop.run_training(recipe, run, False, stop)


def recipe_of(case: Case, tiles: str) -> Recipe:
    recipe = small_recipe(
        encoder={"name": "vit_tiny_patch8", "image_size": 16},
        batch={"global_batch_size": 4 * case.size, "micro_batch_size": 2, "accumulation_steps": 2},
        hardware={"num_devices": case.size},
        memory={"fully_shard": case.divided, "keep_last_micro_batch": not case.divided},
        schedule={"epochs": 1},
        data={"source": tiles, "num_workers": case.workers},
        run={"log_every_steps": 1, "checkpoint_every_steps": 3},
    )
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"stall_seconds": case.stall_seconds})})


def start(case: Case, rank: int, group: int, *arguments: Any) -> int:
    """A fork; what it and its workers say goes to the case's one log, in the order in which it is said."""
    process = os.fork()
    if process:
        os.setpgid(process, group or process)
        return process
    os.setpgid(0, group)
    log = os.open(arguments[2].with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 0
    try:
        train(case, rank, *arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stderr.flush()
    os._exit(code)


class Watched:
    """A case under way."""

    def __init__(self, case: Case, number: int, tiles: str, folder: Path) -> None:
        self.case, self.run = case, folder / f"run{number}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.ranks: list[int] = []
        for rank in range(case.size):
            self.ranks.append(start(case, rank, self.ranks[0] if rank else 0, port, tiles, self.run))
        self.codes: dict[int, int] = {}
        self.gone_at = 0.0

    def look(self) -> bool:
        """Whether no process of it is left, workers included."""
        for rank, process in enumerate(self.ranks):
            if rank in self.codes:
                continue
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                self.codes[rank] = os.waitstatus_to_exitcode(status)
        try:
            os.killpg(self.ranks[0], 0)
        except ProcessLookupError:
            self.gone_at = self.gone_at or time.time()
        return bool(self.gone_at)

    def told(self) -> dict[str, Any]:
        happened = self.run.with_suffix(".happened")
        since = happened.stat().st_mtime if happened.exists() else self.gone_at
        said = self.run.with_suffix(".log").read_text()
        codes = [self.codes.get(rank) for rank in range(self.case.size)]
        return {"codes": codes, "seconds": round(self.gone_at - since, 2) if self.gone_at else None, "said": said}


def main() -> None:
    torch.set_num_threads(1)
    encoders._VIT_SIZES["tiny"] = (192, 1, 3)
    Image.preinit()
    loop.build_moco(recipe_of(Case("nothing"), ""))  # all that is imported on the way is there for the forks
    cases = [Case(**case) for case in json.loads(sys.argv[3])]
    watched = [Watched(case, number, sys.argv[1], Path(sys.argv[2])) for number, case in enumerate(cases)]
    deadline = time.monotonic() + MOST_SECONDS
    while sum(each.look() for each in watched) < len(watched) and time.monotonic() < deadline:
        time.sleep(0.02)
    for each in watched:
        if not each.gone_at:
            os.killpg(each.ranks[0], signal.SIGKILL)
        print(json.dumps(each.told()))


if __name__ == "__main__":
    main()
