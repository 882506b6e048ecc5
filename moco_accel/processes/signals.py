"""Stop requests: SIGTERM, SIGINT, SIGHUP or the end of the launcher. The run ends after the current step, and is saved.

A thread receives the signals. Python's own handlers would wait until the main thread is back in Python, which takes
long while it is in a kernel or waits for another rank.
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
_SAME_PRESS_SECONDS = 2.0  # a launcher passes Ctrl-C on to processes that got it from the terminal already
_INTERRUPTED_EXIT_CODE = 130
_POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1  # see prctl(2)


class StoppedBySignal(Exception):  # noqa: N818 - not an error
    """The run has been saved and ends here."""


class StoppedWhileWaiting(Exception):  # noqa: N818 - not an error
    """A signal asked to stop while the main thread was in `stoppable_wait`."""


class StopRequest:
    """Listens for a request to stop this process. Use it as a context, before any slow import.

    Attributes:
        unsaved_work: What a second Ctrl-C would lose; the saver keeps it up to date.
        resume_command: The command that resumes this run; None if it cannot be found.
    """

    def __init__(self) -> None:
        self.unsaved_work = "nothing is saved yet, so the whole run is lost"
        self._signal: str | None = None
        self._since, self._parent, self._process = 0.0, os.getppid(), os.getpid()
        by_torchrun, by_parent = "TORCHELASTIC_RUN_ID" in os.environ, _launcher_command(self._parent) is not None
        self._launched = by_torchrun or by_parent
        self._orphaned = by_torchrun and not by_parent and self._parent == 1  # the launcher ended during the start
        self.resume_command = _resume_command()  # read now, while the launcher runs
        self._handlers_before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread can set handlers
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                self._handlers_before[number] = signal.signal(number, self._interrupt)  # it wakes the listener
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(read,), daemon=True).start()
        _wait.request = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if not self._handlers_before:
            return
        signal.set_wakeup_fd(self._wakeup)
        _wait.request = None
        for number, handler in self._handlers_before.items():
            # after a stop, a launcher may still pass on the signal that every process already got
            signal.signal(number, signal.SIG_IGN if self._signal else handler)
        os.close(self._write)  # ends the listener

    @contextmanager
    def exit_on_request(self) -> Iterator[None]:
        """Within the context, exit at once on a request. Use it while ranks connect, which may take long."""
        started = threading.Event()

        def exit_if_requested() -> None:
            while not started.wait(_POLL_SECONDS):
                if self.is_requested:
                    _write(f"stopped by {self.reason}, before the run started")
                    os._exit(0)

        threading.Thread(target=exit_if_requested, daemon=True).start()
        try:
            yield
        finally:
            started.set()

    @property
    def is_requested(self) -> bool:
        """True once a signal came or the launcher ended."""
        return self._signal is not None or self._orphaned or (self._launched and os.getppid() != self._parent)

    @property
    def reason(self) -> str:
        """The signal's name, or the launcher's end; empty if no stop was requested from this process."""
        return self._signal or ("its launcher's end" if self.is_requested else "")

    def _interrupt(self, number: int, frame: object) -> None:
        """End the main thread's wait, if it is in one."""
        if _wait.is_stoppable and os.getpid() == self._process:
            while not self._signal:  # the listener sets it at once
                time.sleep(_POLL_SECONDS / 50)
            raise StoppedWhileWaiting

    def _listen(self, read: int) -> None:
        while numbers := os.read(read, 64):
            for number in numbers:
                if number in SIGNALS:
                    self._handle(signal.Signals(number))
        os.close(read)

    def _handle(self, number: signal.Signals) -> None:
        if self._signal is None:
            self._signal, self._since = number.name, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                again = f"; Ctrl-C again stops at once ({self.unsaved_work})" if number == signal.SIGINT else ""
                _write(f"{number.name}: saving and stopping after this step{again}")
        elif number == signal.SIGINT and time.monotonic() - self._since > _SAME_PRESS_SECONDS:
            _write(f"stopped at once: {self.unsaved_work}")
            kill_workers()
            os._exit(_INTERRUPTED_EXIT_CODE)


class _Wait:
    """Whether a signal may interrupt the main thread, and the request that listens for signals."""

    def __init__(self) -> None:
        self.is_stoppable = False
        self.request: StopRequest | None = None


_wait = _Wait()


@contextmanager
def stoppable_wait() -> Iterator[None]:
    """Let a stop request end what the main thread waits for. What it got so far is lost.

    Raises:
        StoppedWhileWaiting: Once a signal asks to stop.
    """
    _wait.is_stoppable = True
    try:
        if _wait.request is not None and _wait.request._signal:
            raise StoppedWhileWaiting
        yield
    finally:
        _wait.is_stoppable = False


def ignore_signals() -> None:
    """Ignore stop requests in a loader worker: its trainer needs it until the step is done."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, even if it hangs in a read. Only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_workers() -> None:
    """Kill the loader workers: they ignore SIGTERM, and one that hangs would keep the trainer from ending."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's handler would report each as an error
    for child in multiprocessing.active_children():
        child.kill()


def _resume_command() -> str | None:
    """Return the command that started this process, with `--resume`; None if it cannot be found."""
    words, variables = _launcher_command(os.getppid()), _launcher_variables(os.getppid())
    if words is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return None
        words, variables = list(sys.orig_argv), []
    if len(words) > 1 and Path(words[1]).name in _LAUNCHERS and shutil.which(Path(words[1]).name) == words[1]:
        words = [Path(words[1]).name, *words[2:]]
    if "--resume" not in words:
        words = [*words, "--resume"]
    return " ".join([*variables, shlex.join(words)])


def _launcher_command(pid: int) -> list[str] | None:
    """Return the command line of process `pid` if it is a launcher; None if not, or if it cannot be read."""
    words = _read_words(pid, "cmdline")
    is_script = any(Path(word).name in _LAUNCHERS for word in words[:2])
    is_module = any(word in _LAUNCHER_MODULES for word in words[:6])
    return words if is_script or is_module else None


def _launcher_variables(pid: int) -> list[str]:
    """Return the launcher's environment variables that matter, as `NAME=value`."""
    pairs = _read_words(pid, "environ")
    found = [pair for pair in pairs if pair.startswith(("ACCELERATE_", "CUDA_VISIBLE_DEVICES="))]
    return [f"{name}={shlex.quote(value)}" for name, _, value in (pair.partition("=") for pair in sorted(found))]


def _read_words(pid: int, name: str) -> list[str]:
    """Return the words of /proc/PID/NAME; none if it cannot be read."""
    try:
        return [os.fsdecode(word) for word in Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []


def _write(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # the console may be in the middle of a line
