"""Lock a run's folder, so that two runs cannot write into it at once."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from rich.markup import escape

from moco_accel.common.console import console
from moco_accel.common.errors import UserError
from moco_accel.processes.control_group import ControlGroup

_LOCK = "running"


class FolderLock:
    """Context manager in which rank 0 locks RUN/running. The lock ends with its process, even if it is killed.

    Raises:
        UserError: If another run holds the lock or the folder cannot be written; raised on all ranks.
    """

    def __init__(self, run: Path, control_group: ControlGroup) -> None:
        self._run, self._control_group, self._handle = run, control_group, -1

    def __enter__(self) -> FolderLock:
        self._control_group.run_on_rank_zero(self._acquire)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._handle < 0:
            return
        with suppress(OSError):  # a full or broken disk raises its own error elsewhere
            (self._run / _LOCK).unlink()
            self._run.rmdir()  # succeeds only if the run wrote nothing
        os.close(self._handle)

    def _acquire(self) -> None:
        if self._run.exists() and not self._run.is_dir():
            raise UserError(f"--output-dir={self._run} is a file; a run needs a folder, e.g. {self._run}_run")
        self._run.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._run / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            # lockf, not flock: loader workers must not inherit the lock
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(handle, 100).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise UserError(
                f"--output-dir={self._run} is in use: {holder} trains in it. Stop it first, or name another folder"
            ) from None
        except OSError as error:
            name = escape(str(self._run))
            console.print(
                f"{name} cannot be locked ({error.strerror}): make sure that no other run uses it", soft_wrap=True
            )
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._handle = handle
