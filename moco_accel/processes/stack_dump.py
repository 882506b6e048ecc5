"""Show where processes are that make no progress: the main thread's position, and stacks that a signal requests."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

from moco_accel.processes.phases import DATA, progress

_PACKAGE = Path(__file__).parents[1]
_DUMP_SECONDS = 0.5
_STATES = {
    "T": "it is stopped (SIGSTOP, or a debugger)",
    "t": "it is stopped (a debugger)",
    "D": "it is in the kernel, which waits for a disk or a driver",
}


def main_thread_stack() -> traceback.StackSummary:
    """Return the main thread's stack, from any thread."""
    return traceback.extract_stack(sys._current_frames()[threading.main_thread().ident or 0])


def describe_position() -> str:
    """Return where the main thread is, and which tiles are being read."""
    frames = main_thread_stack()
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)] or frames
    places = [f"{frame.name} at {Path(frame.filename).name}:{frame.lineno}" for frame in (ours[-1], frames[-1])]
    tiles = [f"process {process} reads tile {tile}" for process, tile in progress.current_tiles()]
    return ", ".join([*(tiles if progress.phase == DATA else []), *dict.fromkeys(places)])


def dump_worker_stacks() -> None:
    """Let loader workers print their stacks."""
    for worker in multiprocessing.active_children():
        with suppress(OSError):
            os.kill(worker.pid or 0, signal.SIGUSR2)
    time.sleep(_DUMP_SECONDS)


def kill_with_stack_dump(pid: int) -> None:
    """Kill a process of this machine, after it had time to print its stack."""
    with suppress(OSError):
        os.kill(pid, signal.SIGUSR2)
        time.sleep(_DUMP_SECONDS)
        os.kill(pid, signal.SIGKILL)


def describe_process_state(pid: int) -> str:
    """Return the state of a process of this host if it explains why no heartbeat comes, else an empty string."""
    with suppress(OSError, IndexError):
        return _STATES.get(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0], "")
    return ""
