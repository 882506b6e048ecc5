"""SIGTERM, SIGINT, a closed terminal or a launcher that is gone: a run ends after the step it is in, and is saved.

Signals are noted at once, whatever the process is busy with: Python's own handlers wait until it is back in Python, and
it may be in a kernel, or waiting for another process, for long.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun")
_LAUNCHER_MODULES = ("accelerate.commands.launch", "torch.distributed.run", "torch.distributed.launch")
_ONE_PRESS_SECONDS = 2.0  # a launcher passes Ctrl-C on to processes that have had it from the terminal
_INTERRUPTED = 130
_LOOK_SECONDS = 0.5
_SIGNAL_ON_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of prctl


class StoppedBySignal(Exception):  # noqa: N818 - no error
    """The run has been saved and ends here."""


class StopRequest:
    """Whether this process was told to stop. Use it as a context, from before anything slow is imported."""

    def __init__(self) -> None:
        self.loss = "all of it is lost, for nothing is saved yet"
        """What a second Ctrl-C would lose; the loop keeps it up to date."""
        self._signal: str | None = None
        self._since, self._parent = 0.0, os.getppid()
        by_torchrun, by_parent = "TORCHELASTIC_RUN_ID" in os.environ, launcher(self._parent) is not None
        self._launched = by_torchrun or by_parent
        self._orphaned = by_torchrun and not by_parent and self._parent == 1  # it died while this process was started
        self.resume_command = resume_command()  # while the launcher is there to be asked
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self  # handlers can be set in the main thread alone
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                self._before[number] = signal.signal(number, _leave_it_to_the_listener)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(read,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            # saved and about to end: a launcher may still pass on the signal that all have had
            signal.signal(number, signal.SIG_IGN if self._signal else handler)
        os.close(self._write)  # which ends the listener

    @contextmanager
    def while_nothing_is_begun(self) -> Iterator[None]:
        """Within, end at once when told to, or when the launcher is gone: processes look for each other for long."""
        begun = threading.Event()

        def end_if_wanted() -> None:
            while not begun.wait(_LOOK_SECONDS):
                if self.wanted:
                    _say(f"stopped by {self.reason}, before anything was begun")
                    os._exit(0)

        threading.Thread(target=end_if_wanted, daemon=True).start()
        try:
            yield
        finally:
            begun.set()

    @property
    def wanted(self) -> bool:
        return self._signal is not None or self._orphaned or (self._launched and os.getppid() != self._parent)

    @property
    def reason(self) -> str:
        """Empty where another process was told."""
        return self._signal or ("its launcher's end" if self.wanted else "")

    def _listen(self, read: int) -> None:
        while numbers := os.read(read, 64):
            for number in numbers:
                if number in SIGNALS:
                    self._take(signal.Signals(number))
        os.close(read)

    def _take(self, number: signal.Signals) -> None:
        if self._signal is None:
            self._signal, self._since = number.name, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                again = f"; Ctrl-C again stops at once ({self.loss})" if number == signal.SIGINT else ""
                _say(f"{number.name}: ending after this step, saved{again}")
        elif number == signal.SIGINT and time.monotonic() - self._since > _ONE_PRESS_SECONDS:
            _say(f"stopped at once: {self.loss}")
            end_workers()
            os._exit(_INTERRUPTED)


def ignore_signals(worker: int = 0) -> None:
    """In a loader's worker: it ends when its trainer does, which needs it to the end of the step."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with_trainer() -> None:
    """In a loader's worker: also when the trainer is killed, and the worker hangs in a read. On Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_ON_PARENTS_DEATH, signal.SIGKILL)


def end_workers() -> None:
    """No worker outlives its trainer: one that hangs would keep it from ending, for it ignores a gentle word."""
    for child in multiprocessing.active_children():
        child.kill()


def resume_command() -> str | None:
    """What was typed to start this process, with `--resume`; None where that cannot be told."""
    words, assigned = launcher(os.getppid()), _launchers_variables(os.getppid())
    if words is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return None
        words, assigned = list(sys.orig_argv), []
    if len(words) > 1 and Path(words[1]).name in _LAUNCHERS and shutil.which(Path(words[1]).name) == words[1]:
        words = [Path(words[1]).name, *words[2:]]
    if "--resume" not in words:
        words = [*words, "--resume"]
    return " ".join([*assigned, shlex.join(words)])


def launcher(pid: int) -> list[str] | None:
    """The command line of process `pid` if it is one of those that start trainers; None also where none can be read."""
    try:
        words = [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return None
    by_script = any(Path(word).name in _LAUNCHERS for word in words[:2])
    by_module = any(word in _LAUNCHER_MODULES for word in words[:6])
    return words if by_script or by_module else None


def _launchers_variables(pid: int) -> list[str]:
    """What stood, or may have stood, before the launcher on its command line."""
    try:
        pairs = [os.fsdecode(pair) for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if pair]
    except OSError:
        return []
    found = [pair for pair in pairs if pair.startswith(("ACCELERATE_", "CUDA_VISIBLE_DEVICES="))]
    return [f"{name}={shlex.quote(value)}" for name, _, value in (pair.partition("=") for pair in sorted(found))]


def _leave_it_to_the_listener(number: int, frame: object) -> None:
    """A signal without a handler of Python's would not wake the listener."""


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # not through the console, which may be in the midst of a line
