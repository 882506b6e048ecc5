"""Lock a run's folder, so that two runs cannot write into it at once."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.markup import escape

from moco_accel.common.console import console
from moco_accel.common.errors import UserError
from moco_accel.processes.control_group import ControlGroup

_LOCK = "running"


@contextmanager
def lock_folder(run: Path, control_group: ControlGroup) -> Iterator[None]:
    """Let rank 0 lock RUN/running. The lock ends with its process, even if it is killed.

    Raises:
        UserError: If another run holds the lock or the folder cannot be written; raised on all ranks.
    """
    handles: list[int] = []
    control_group.run_on_rank_zero(lambda: handles.append(_acquire(run)))
    try:
        yield
    finally:
        for handle in handles:
            with suppress(OSError):  # a full or broken disk raises its own error elsewhere
                (run / _LOCK).unlink()
                run.rmdir()  # succeeds only if the run wrote nothing
            os.close(handle)


def _acquire(run: Path) -> int:
    if run.exists() and not run.is_dir():
        raise UserError(f"--output-dir={run} is a file; a run needs a folder, e.g. {run}_run")
    run.mkdir(parents=True, exist_ok=True)
    handle = os.open(run / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        # lockf, not flock: loader workers must not inherit the lock
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(handle, 100).decode(errors="replace").strip() or "another process"
        os.close(handle)
        raise UserError(
            f"--output-dir={run} is in use: {holder} trains in it. Stop it first, or name another folder"
        ) from None
    except OSError as error:
        reason = f"{escape(str(run))} cannot be locked ({error.strerror})"
        console.print(f"{reason}: make sure that no other run uses it", soft_wrap=True)
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return handle
