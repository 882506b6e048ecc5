"""Where a trainer may be killed: every file operation, half-written piece, tensor read and torch operation is a place.

Laid in a rank before it runs the trainer's own entry. The trap counts the places of its phase and at the n-th sends
SIGKILL, which nothing can catch and after which nothing is tidied.
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
    """Kills at place `nth` (from 0), or else at the end, of the `turn`-th (from 0) time that `phase` comes.

    Phases: build (a new run, before its first step), load (a resumed one), step, save (files are written), rename (to
    `latest`), rotate (old ones are removed); before the first checkpoint is there they are "start build" and so on.
    """

    def __init__(
        self, run: Path, notes: Path, rank: int, phase: str = "", turn: int = 0, nth: int = 0, victims: str = "all"
    ) -> None:
        self.run, self.notes, self.rank, self.victims = run, notes, rank, victims
        self.kill_in, self.turn, self.nth, self.own_pid = phase, turn, nth, os.getpid()
        self.before_first, self.step, self.places = not (run / "latest").exists(), -1, 0
        self.turns: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.enter("build" if self.before_first else "load")

    def enter(self, phase: str) -> None:
        """The phase before ends."""
        if self.turns and self._is_here():
            self._spring("the end")
        self.phase, self.places = phase, 0
        self.turns[self._full_name()] += 1

    def __call__(self, place: str) -> None:
        if not self.phase or os.getpid() != self.own_pid:  # loader workers inherit all of this
            return
        self.places += 1
        self.most[self._full_name()] = max(self.places, self.most[self._full_name()])
        if self._is_here() and self.places > self.nth:
            self._spring(place)

    def _full_name(self) -> str:
        return f"start {self.phase}" if self.before_first else self.phase

    def _is_here(self) -> bool:
        name = self._full_name()
        return bool(self.phase) and name == self.kill_in and self.turns[name] == self.turn + 1

    def _spring(self, place: str) -> None:
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
    """Of two: the launcher's other child."""
    children = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children")
    while len(pids := children.read_text().split()) < 2:
        time.sleep(0.001)
    return next(int(pid) for pid in pids if int(pid) != os.getpid())


def append(path: Path, row: dict[str, Any]) -> None:
    """In one write, which a kill leaves whole or, at a page's end, as half a line."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, (json.dumps(row) + "\n").encode())
    os.close(handle)


def lay(trap: Trap) -> None:
    """Put places and phases into the trainer. Raises where one is gone: a trap that lies nowhere proves nothing."""
    from moco_accel.checkpoints import checkpoint, manifest, saver
    from moco_accel.training import loop

    _watch_files(trap)
    for module in (checkpoint, manifest):
        _replace(module, "write_hashed", lambda write: lambda path, chunks: write(path, _in_halves(trap, path, chunks)))
    _replace(checkpoint, "read_tensors", lambda read: lambda *args: _each(trap, read(*args)))
    _replace(saver.Saver, "restore", lambda restore: _in_phase(trap, restore, trap.phase, begins=False))
    _replace(saver.Saver, "_write", lambda write: _in_phase(trap, write, "save"))
    _replace(saver, "remove_old", lambda remove: _in_phase(trap, remove, "rotate"))
    _replace(saver.Saver, "save", lambda save: _saving(trap, save))
    _replace(loop, "train_step", lambda step: _stepping(trap, step))


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))


def _in_phase(trap: Trap, function: Callable[..., Any], phase: str, begins: bool = True) -> Callable[..., Any]:
    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        if begins:
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
    """A step whose every operation, of forward, backward, collectives and optimizer, is a place."""
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
        whole = memoryview(chunk)
        yield whole[: len(whole) // 2]
        trap(f"half a piece of {path.name}")
        yield whole[len(whole) // 2 :]


def _each(trap: Trap, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        trap("reading a tensor")
        yield item


def _watch_files(trap: Trap) -> None:
    """Every call of the kind in the run's folder, before it is done; a checkpoint's own renaming begins a phase."""
    folder = f"{trap.run}/"

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not trap.phase or not args or not isinstance(args[0], str | bytes | Path):
            return
        path = os.fsdecode(args[0])
        if path.startswith("/") and not path.startswith(folder):  # removing a tree says names alone
            return
        trap(f"{event} {Path(path).name}")
        if event == "os.rename" and trap.phase == "save" and path.endswith(".partial") and "/checkpoints/" in path:
            trap.enter("rename")

    sys.addaudithook(hear)
    sync = os.fsync

    def fsync(handle: int) -> None:
        trap("fsync")
        sync(handle)
        trap("after fsync")

    os.fsync = fsync


def log_tiles(trap: Trap, file: Path) -> None:
    """A row for each step that is handed out: its places in order, and a checksum of both views' augmented pixels."""
    from moco_accel.training import loader, loop

    asked: deque[Any] = deque()
    draw, view_steps = loader.MicroBatchPlaces.__iter__, loop.step_views

    def places(self: Any) -> Iterator[Any]:
        for micro_batch in draw(self):
            asked.append(micro_batch)
            yield micro_batch

    def views(tiles: Any, recipe: Any, device: Any, rank: int, first_step: int, damage: Any) -> Iterator[Any]:
        steps = view_steps(tiles, recipe, device, rank, first_step, damage)
        for step, pair in enumerate(steps, start=first_step):
            digest = hashlib.sha256()
            for view in pair:
                for micro_batch in view:
                    digest.update(micro_batch.numpy().tobytes())
            trap.step = step
            drawn = [asked.popleft() for _ in range(len(pair[0]))]
            append(file, {"step": step, "rank": rank, "places": drawn, "pixels": digest.hexdigest()})
            yield pair

    loader.MicroBatchPlaces.__iter__ = places  # type: ignore[method-assign]
    loop.step_views = views
