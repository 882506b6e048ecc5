"""Launches trainers that are to be killed: a warm process that forks, for each launch, a launcher and its ranks.

A fresh interpreter takes five seconds of CPU to import torch; a fork of one that has imported everything, and done
nothing else, takes none. It is the same to the trainer: no thread runs here when it is forked (checked), nothing has
been drawn, opened or built, and a rank then runs train.py's own entry on its command line, seeds what it draws from,
joins its process group, opens tiles, forks loader workers, and ends or is killed as any process is. What is left of a
launch by whoever died is handed to this process (it is their subreaper), which so knows when the last one is gone.

stdin: a launch as JSON on each line (see `Launch`); stdout: what became of it.
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

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 30.0  # torchrun's
LIMIT_SECONDS = 120.0
TINY = (48, 2, 3)  # width, blocks, heads


@dataclass(frozen=True)
class Launch:
    """`arguments` of train.py; `kill`: see `kill_traps.Trap`, and the `rank` it is laid in; `after`: seconds to a kill.

    `count`: no kill, but write down the most places that each phase has had.
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
    """All that a trainer imports, the lazy ones too."""
    import datasets  # noqa: F401
    import kill_traps  # noqa: F401
    import moco_accel.loop  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import transformers.models.vit.modeling_vit  # noqa: F401
    from transformers import ViTConfig, ViTModel  # noqa: F401
    from transformers.initialization import no_init_weights  # noqa: F401

    from moco_accel.networks import encoders

    encoders._VIT_SIZES["tiny"] = TINY  # two blocks of twelve, a quarter as wide


def serve() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    warm_up()
    print(json.dumps({"threads": len(list(Path("/proc/self/task").iterdir()))}), flush=True)
    for line in sys.stdin:
        print(json.dumps(launch(Launch(**json.loads(line)))), flush=True)


def launch(wanted: Launch) -> dict[str, Any]:
    """Run it in a session of its own until the last of its processes is gone."""
    started = time.time()
    launcher = os.fork()
    if launcher == 0:
        os.setsid()
        be_launcher(wanted)
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
        if wanted.after is not None and not killed_at and code is None and time.time() > started + wanted.after:
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


def be_launcher(wanted: Launch) -> NoReturn:
    """As torchrun is: waits for its ranks, and when one fails ends the others, gently at first."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    ranks = set()
    for rank in range(wanted.processes):
        pid = os.fork()
        if pid == 0:
            be_rank(wanted, rank, port)
        ranks.add(pid)
    failed, kill_from = False, float("inf")
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        ranks.discard(pid)
        if pid and status and not failed:
            failed, kill_from = True, time.monotonic() + GRACE_SECONDS
            for other in ranks:
                os.kill(other, signal.SIGTERM)
        if time.monotonic() > kill_from:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.005)
    os._exit(int(failed))


def be_rank(wanted: Launch, rank: int, port: int) -> NoReturn:
    """Run train.py's entry as `python moco_accel/train.py` would, to the end of the process."""
    import kill_traps

    notes, run = Path(wanted.notes), Path(wanted.run)
    log = os.open(notes / f"log.{wanted.number}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for handle, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(handle, target)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(wanted.processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    os.environ["TORCHELASTIC_RUN_ID"] = "killed"
    sys.argv = ["moco_accel/train.py", *wanted.arguments]
    kill = {"phase": "", **(wanted.kill or {})}
    mine = kill.pop("rank", 0) == rank
    trap = kill_traps.Trap(run, notes, rank, **(kill if mine else {}))
    kill_traps.log_tiles(trap, notes / f"tiles.{wanted.number}.{rank}.jsonl")
    if (mine and kill["phase"]) or wanted.count:
        kill_traps.lay(trap)
    code: Any = 1
    try:
        from moco_accel.common.console import run_command
        from moco_accel.train import app

        run_command(app)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    if wanted.count:
        (notes / f"counts.{wanted.number}.{rank}.json").write_text(json.dumps(trap.most))
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
