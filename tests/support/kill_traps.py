"""Kill a trainer at a chosen place: a file operation, a half-written file, a tensor read or a torch operation.

A trap is installed in a rank before it runs the trainer's entry point. It counts the places of a phase and sends
SIGKILL at the n-th.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir")


class Trap:
    """Kills at place `nth`, or at the phase's end, of the `turn`-th occurrence of `phase`; both count from 0.

    Phases: build (a new run, before its first step), load (a resumed run), step, save (write files), rename (up to
    `latest`), rotate (remove old checkpoints). Before the first checkpoint exists, a phase is called `start build` etc.
    """

    def __init__(
        self, run: Path, notes: Path, rank: int, phase: str = "", turn: int = 0, nth: int = 0, victims: str = "all"
    ) -> None:
        self.run, self.notes, self.rank, self.victims = run, notes, rank, victims
        self.kill_in, self.turn, self.nth, self.own_pid = phase, turn, nth, os.getpid()
        self.before_first, self.step, self.places = not (run / "latest").exists(), -1, 0
        self.turns: Counter[str] = Counter()
        self.max_places: Counter[str] = Counter()
        self.enter("build" if self.before_first else "load")

    def enter(self, phase: str) -> None:
        """Enter a phase, which ends the previous one."""
        if self.turns and self._is_armed():
            self._kill("the end")
        self.phase, self.places = phase, 0
        self.turns[self._full_name()] += 1

    def __call__(self, place: str) -> None:
        if not self.phase or os.getpid() != self.own_pid:  # loader workers inherit the trap
            return
        self.places += 1
        self.max_places[self._full_name()] = max(self.places, self.max_places[self._full_name()])
        if self._is_armed() and self.places > self.nth:
            self._kill(place)

    def _full_name(self) -> str:
        return f"start {self.phase}" if self.before_first else self.phase

    def _is_armed(self) -> bool:
        name = self._full_name()
        return bool(self.phase) and name == self.kill_in and self.turns[name] == self.turn + 1

    def _kill(self, place: str) -> None:
        note = {"phase": self.kill_in, "place": place, "rank": self.rank, "victims": self.victims, "step": self.step}
        note["number"] = self.places
        self.kill_in = ""
        append(self.notes / "killed.jsonl", {**note, "time": time.time()})
        if self.victims == "all":
            os.killpg(0, signal.SIGKILL)
        if self.victims == "other":
            os.kill(_other_rank(), signal.SIGKILL)
            return
        if self.victims == "own and launcher":
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def _other_rank() -> int:
    """Return the launcher's other child, of two."""
    children = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children")
    while len(pids := children.read_text().split()) < 2:
        time.sleep(0.001)
    return next(int(pid) for pid in pids if int(pid) != os.getpid())


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a row in one write, which a kill can only truncate at a page's end."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, (json.dumps(row) + "\n").encode())
    os.close(handle)


def install(trap: Trap) -> None:
    """Patch places and phases into the trainer. Raises AttributeError if a patched function no longer exists."""
    from moco_accel.checkpoints import checkpoint, manifest, run_folder, saver
    from moco_accel.training import loop

    _watch_files(trap)
    _replace(
        manifest,
        "write_with_checksum",
        lambda write: lambda path, chunks: write(path, _in_halves(trap, path, chunks)),
    )
    _replace(checkpoint, "read_tensors", lambda read: lambda *args: _each(trap, read(*args)))
    _replace(saver.CheckpointSaver, "restore", lambda restore: _in_phase(trap, restore, trap.phase, enters=False))
    _replace(saver.CheckpointSaver, "_write", lambda write: _in_phase(trap, write, "save"))
    _replace(run_folder, "remove_old_checkpoints", lambda remove: _in_phase(trap, remove, "rotate"))
    _replace(saver.CheckpointSaver, "save", lambda save: _saving(trap, save))
    _replace(loop, "train_step", lambda step: _stepping(trap, step))


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))


def _in_phase(trap: Trap, function: Callable[..., Any], phase: str, enters: bool = True) -> Callable[..., Any]:
    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        if enters:
            trap.enter(phase)
        trap(f"before {function.__name__}")
        result = function(*args, **kwargs)
        trap.enter("")
        return result

    return inside


def _saving(trap: Trap, save: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*args: Any) -> None:
        save(*args)
        trap.before_first = False

    return inside


def _stepping(trap: Trap, step: Callable[..., Any]) -> Callable[..., Any]:
    """Make every torch operation of a step a place: forward, backward, collectives and optimizer."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Places(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            trap(str(operation))
            return operation(*args, **(kwargs or {}))

    def inside(*args: Any, **kwargs: Any) -> Any:
        trap.enter("step")
        with Places() if trap.kill_in.endswith("step") else contextlib.nullcontext():
            result = step(*args, **kwargs)
        trap.enter("")
        return result

    return inside


def _in_halves(trap: Trap, path: Path, chunks: Iterable[Any]) -> Iterator[memoryview]:
    for chunk in chunks:
        view = memoryview(chunk)
        yield view[: len(view) // 2]
        trap(f"half a piece of {path.name}")
        yield view[len(view) // 2 :]


def _each(trap: Trap, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        trap("reading a tensor")
        yield item


def _watch_files(trap: Trap) -> None:
    """Make every file operation in the run's folder a place. Renaming a checkpoint starts the phase `rename`."""
    folder = f"{trap.run}/"

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not trap.phase or not args or not isinstance(args[0], str | bytes | Path):
            return
        path = os.fsdecode(args[0])
        if path.startswith("/") and not path.startswith(folder):  # rmtree reports bare names
            return
        trap(f"{event} {Path(path).name}")
        if event == "os.rename" and trap.phase == "save" and path.endswith(".partial") and "/checkpoints/" in path:
            trap.enter("rename")

    sys.addaudithook(audit)
    sync = os.fsync

    def fsync(handle: int) -> None:
        trap("fsync")
        sync(handle)
        trap("after fsync")

    os.fsync = fsync


def log_tiles(trap: Trap, file: Path) -> None:
    """Log a row for each step of the loader: its tiles in order, and a checksum of both views' augmented pixels."""
    from moco_accel.training import loader, loop

    drawn: deque[Any] = deque()
    iterate, view_steps = loader.MicroBatchSampler.__iter__, loop.step_views

    def logged_iterator(self: Any) -> Iterator[Any]:
        for micro_batch in iterate(self):
            drawn.append(micro_batch)
            yield micro_batch

    def logged_steps(tiles: Any, recipe: Any, device: Any, rank: int, first_step: int, damage: Any) -> Iterator[Any]:
        steps = view_steps(tiles, recipe, device, rank, first_step, damage)
        for step, pair in enumerate(steps, start=first_step):
            digest = hashlib.sha256()
            for view in pair:
                for micro_batch in view:
                    digest.update(micro_batch.numpy().tobytes())
            trap.step = step
            places = [drawn.popleft() for _ in range(len(pair[0]))]
            append(file, {"step": step, "rank": rank, "places": places, "pixels": digest.hexdigest()})
            yield pair

    loader.MicroBatchSampler.__iter__ = logged_iterator  # type: ignore[method-assign]
    loop.step_views = logged_steps
