"""One run at a time in a folder: two would write into each other's checkpoints and lists."""

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
from moco_accel.processes.control_group import Agreement

_LOCK = "running"


class FolderLock:
    """Held by the first process, as a lock on RUN/running that ends with it, however it ends; use it as a context.

    Raises UserError, on all processes, where another run holds it or the folder cannot be written.
    """

    def __init__(self, run: Path, agreement: Agreement) -> None:
        self._run, self._agreement, self._handle = run, agreement, -1

    def __enter__(self) -> FolderLock:
        self._agreement.by_first(self._take)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._handle < 0:
            return
        with suppress(OSError):  # a full or broken disk has its own error
            (self._run / _LOCK).unlink()
            self._run.rmdir()  # of a run that never began, and then empty
        os.close(self._handle)

    def _take(self) -> None:
        if self._run.exists() and not self._run.is_dir():
            raise UserError(f"--output-dir={self._run} is a file; a run needs a folder, e.g. {self._run}_run")
        self._run.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._run / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            # of the process, not of the file: loader workers do not have it
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(handle, 100).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise UserError(
                f"--output-dir={self._run} is in use: {holder} trains in it. Stop it first, or name another folder"
            ) from None
        except OSError as error:
            name = escape(str(self._run))
            console.print(f"{name} cannot be locked ({error.strerror}): see that no other run uses it", soft_wrap=True)
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._handle = handle
