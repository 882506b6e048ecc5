"""Launch trainers that are killed: a process with all imports done forks a launcher and its ranks for each launch.

A fork saves the five seconds of CPU time that importing torch takes, and makes no difference to the trainer: this
process has one thread (checked) and has neither drawn random numbers nor opened files, and each rank runs train.py's
entry point on its own command line. This process is the subreaper of every launch, so it knows when the last process
of a launch is gone.

stdin: one `Launch` per line, as JSON. stdout: its result, as JSON.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from moco_accel.recipe.encoder_names import VIT_SIZES, VitSize

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 30.0  # as torchrun
LIMIT_SECONDS = 120.0
TINY = VitSize(48, 2, 3)  # width, blocks, heads


@dataclass(frozen=True)
class Launch:
    """One launch.

    Attributes:
        arguments: Arguments of train.py.
        run: The run's folder.
        notes: Folder for logs and records.
        number: Number of this launch of the run.
        processes: Number of ranks.
        kill: Arguments of `kill_traps.Trap`, and the `rank` that gets the trap; None: no trap.
        after: Seconds until all processes are killed; None: not by time.
        count: Do not kill; record the number of places of each phase.
    """

    arguments: list[str]
    run: str
    notes: str
    number: int
    processes: int = 2
    kill: dict[str, Any] | None = None
    after: float | None = None
    count: bool = False


def warm_up() -> None:
    """Import everything that a trainer imports, including lazy imports."""
    import datasets  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import transformers.models.vit.modeling_vit  # noqa: F401
    from support import kill_traps  # noqa: F401
    from transformers import ViTConfig, ViTModel  # noqa: F401
    from transformers.initialization import no_init_weights  # noqa: F401

    from moco_accel.training import run  # noqa: F401

    VIT_SIZES["tiny"] = TINY  # 2 blocks instead of 12, a quarter of the width


def serve() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    warm_up()
    print(json.dumps({"threads": len(list(Path("/proc/self/task").iterdir()))}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run_launch(Launch(**json.loads(line)))), flush=True)


def run_launch(launch: Launch) -> dict[str, Any]:
    """Run a launch in its own session until its last process is gone; return its exit code and times."""
    started = time.time()
    launcher = os.fork()
    if launcher == 0:
        os.setsid()
        run_launcher(launch)
    code = None
    killed_at = 0.0
    while time.time() < started + LIMIT_SECONDS:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return {"code": code, "seconds": time.time() - started, "ended": time.time(), "killed_at": killed_at}
        if pid == launcher:
            code = os.waitstatus_to_exitcode(status)
        if pid == 0:
            time.sleep(0.005)
        if launch.after is not None and not killed_at and code is None and time.time() > started + launch.after:
            killed_at = time.time()
            os.killpg(launcher, signal.SIGKILL)
    left = [path.name for path in Path("/proc").iterdir() if path.name.isdigit() and _session(path) == launcher]
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    return {"code": code, "seconds": time.time() - started, "left": len(left)}


def _session(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return -1


def run_launcher(launch: Launch) -> NoReturn:
    """Wait for the ranks. If one fails, send the others SIGTERM, then SIGKILL, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = set()
    for rank in range(launch.processes):
        pid = os.fork()
        if pid == 0:
            run_rank(launch, rank, port)
        ranks.add(pid)
    failed, kill_at = False, float("inf")
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        ranks.discard(pid)
        if pid and status and not failed:
            failed, kill_at = True, time.monotonic() + GRACE_SECONDS
            for other in ranks:
                os.kill(other, signal.SIGTERM)
        if time.monotonic() > kill_at:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.005)
    os._exit(int(failed))


def run_rank(launch: Launch, rank: int, port: int) -> NoReturn:
    """Run train.py's entry point as `python moco_accel/train.py` would, then end the process."""
    from support import kill_traps

    notes, run = Path(launch.notes), Path(launch.run)
    log = os.open(notes / f"log.{launch.number}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for handle, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(handle, target)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(launch.processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    os.environ["TORCHELASTIC_RUN_ID"] = "killed"
    sys.argv = ["moco_accel/train.py", *launch.arguments]
    kill = {"phase": "", **(launch.kill or {})}
    is_trapped = kill.pop("rank", 0) == rank
    trap = kill_traps.Trap(run, notes, rank, **(kill if is_trapped else {}))
    kill_traps.log_tiles(trap, notes / f"tiles.{launch.number}.{rank}.jsonl")
    if (is_trapped and kill["phase"]) or launch.count:
        kill_traps.install(trap)
    code: Any = 1
    try:
        from moco_accel.common.console import run_command
        from moco_accel.train import app

        run_command(app)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    if launch.count:
        (notes / f"counts.{launch.number}.{rank}.json").write_text(json.dumps(trap.max_places))
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
