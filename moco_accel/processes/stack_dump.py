"""Where processes are that no longer get on: what the main thread does, what others say when asked by a signal."""

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

_HERE = Path(__file__).parents[1]
_ANSWER_SECONDS = 0.5
_STATES = {"T": "it is stopped (SIGSTOP, or a debugger)", "t": "it is stopped (a debugger)"}
_STATES["D"] = "it is in the kernel, which waits for a disk or a driver"


def stack() -> traceback.StackSummary:
    """The main thread's, asked for from another one."""
    return traceback.extract_stack(sys._current_frames()[threading.main_thread().ident or 0])


def where() -> str:
    """What the main thread is at, in a few words."""
    frames = stack()
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_HERE)] or frames
    places = [f"{frame.name} at {Path(frame.filename).name}:{frame.lineno}" for frame in (ours[-1], frames[-1])]
    reading = [f"process {process} reads tile {tile}" for process, tile in progress.reading()]
    return ", ".join(word for word in [*(reading if progress.phase == DATA else []), *dict.fromkeys(places)])


def ask_workers() -> None:
    """Where they are; they say it."""
    for worker in multiprocessing.active_children():
        with suppress(OSError):
            os.kill(worker.pid or 0, signal.SIGUSR2)
    time.sleep(_ANSWER_SECONDS)


def make_an_end(pid: int) -> None:
    """Of a process of this machine that no longer answers, once it has shown where it is if it can."""
    with suppress(OSError):
        os.kill(pid, signal.SIGUSR2)
        time.sleep(_ANSWER_SECONDS)
        os.kill(pid, signal.SIGKILL)


def state_of(pid: int) -> str:
    """What a process of this host is said to be in, if that explains a silence."""
    with suppress(OSError, IndexError):
        return _STATES.get(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0], "")
    return ""
