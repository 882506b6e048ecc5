"""A run's folder: find, verify, name and remove its checkpoints; lock it, so that no two runs write into it at once.

RUN/running                     exists while a process trains, which holds a lock on it
RUN/latest                      name of the newest intact checkpoint
RUN/best                        name and kNN accuracy of the best checkpoint
RUN/checkpoints/step_00000200   .partial while it is written, .removed while it is removed, .damaged if it is set aside
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.markup import escape
from torch import nn

from moco_accel.checkpoints.checkpoint import Checkpoint, load_trained_encoder, verify_checkpoint
from moco_accel.checkpoints.manifest import MANIFEST, DamagedCheckpointError
from moco_accel.common.atomic_files import read_regular_file, write_atomically
from moco_accel.common.console import console
from moco_accel.common.errors import UserError
from moco_accel.processes.control_group import ControlGroup
from moco_accel.recipe.schema import Recipe

STOPPED_FILE = "stopped"
"""Exists while a run that was asked to stop waits to be resumed."""
_NAME = re.compile(r"step_(\d{8,12})")
_LEFTOVER = re.compile(r"step_\d{8,12}\.(partial|removed)")
_MAX_POINTER_BYTES = 256
_LOCK = "running"


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` optimizer steps."""
    return run / "checkpoints" / f"step_{step:08d}"


def check_unused(run: Path) -> None:
    """Raise UserError if a folder already holds a run."""
    if _checkpoint_folders(run) or (run / "latest").exists():
        raise UserError(f"--output-dir={run} already holds a run; --resume continues it, or name a new folder")


def newest_intact(run: Path, log: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest intact checkpoint of a run; None if it has no checkpoint.

    `RUN/latest` is not needed; it is only compared. `log` receives one line for each newer checkpoint that is damaged.

    Raises:
        UserError: If all checkpoints are damaged.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file, not a run's folder")
    reasons = []
    for folder in _checkpoint_folders(run):
        try:
            found = verify_checkpoint(folder)
        except DamagedCheckpointError as reason:
            reasons.append(f"{folder} is damaged: {reason}")
            continue
        for why in reasons:
            log(f"[yellow]{escape(why)}; the previous checkpoint, {found.folder.name}, is used instead[/]")
        _compare_latest(run, found.folder.name, log)
        return found
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise UserError(f"{reasons[0]}{more}; no checkpoint of {run} is intact: a new --output-dir starts a new run")
    return None


def _checkpoint_folders(run: Path) -> list[Path]:
    """Return everything that is named like a checkpoint, the newest first."""
    folder = run / "checkpoints"
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def _compare_latest(run: Path, newest: str, log: Callable[[str], None]) -> None:
    latest = run / "latest"
    if not (latest.is_symlink() or latest.exists()):
        return
    named = read_pointer(latest)
    if named is None:
        log(f"[yellow]{escape(str(latest))} does not name a checkpoint; {newest} is the newest intact one[/]")
    elif int(named.removeprefix("step_")) < int(newest.removeprefix("step_")):
        log(f"{newest} is intact and newer than {named}, which latest names; to go back, move newer ones away")


def read_pointer(path: Path) -> str | None:
    """Return the checkpoint that `latest` or `best` names; None unless it is a plain name."""
    try:
        words = read_regular_file(path, _MAX_POINTER_BYTES).decode().split()
    except (OSError, ValueError):
        return None
    return words[0] if words and _NAME.fullmatch(words[0]) else None


def update_latest(run: Path, checkpoint: Path) -> None:
    """Make RUN/latest name `checkpoint`."""
    write_atomically(run / "latest", checkpoint.name + "\n")


def mark_best(run: Path, checkpoint: Path, accuracy: float) -> None:
    """Make RUN/best name `checkpoint`, which is then kept until a better one is marked."""
    write_atomically(run / "best", f"{checkpoint.name} {accuracy:.6f}\n")


def remove_old_checkpoints(run: Path, keep: int) -> None:
    """Remove all checkpoints except the newest `keep` and the best, and leftovers of a killed process."""
    best = read_pointer(run / "best")
    for old in _checkpoint_folders(run)[keep:]:
        if old.name != best and _is_real_folder(old):
            old.replace(old.with_suffix(".removed"))  # a partly removed checkpoint must not look like one
    remove_leftovers(run)


def tidy_up(run: Path, intact: Path) -> None:
    """Finish what a killed process left undone; set newer, damaged checkpoints aside for the user to inspect."""
    update_latest(run, intact)
    folders = _checkpoint_folders(run)
    for damaged in folders[: folders.index(intact)]:
        aside = damaged.with_suffix(".damaged")
        if _is_real_folder(aside):
            shutil.rmtree(aside)
        damaged.replace(aside)
    remove_leftovers(run)


def remove_leftovers(run: Path) -> None:
    """Remove partly written and partly removed checkpoints of a killed process."""
    folder = run / "checkpoints"
    for path in folder.iterdir() if folder.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name) and _is_real_folder(path):
            shutil.rmtree(path)


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def load_encoder(path: Path) -> tuple[Recipe, nn.Module, Path]:
    """Return recipe, trained encoder and run folder of what `find_checkpoint` finds."""
    checkpoint, run = find_checkpoint(path)
    return checkpoint.recipe, load_trained_encoder(checkpoint), run


def find_checkpoint(path: Path) -> tuple[Checkpoint, Path]:
    """Return the checkpoint at `path`, or the newest intact one of the run at `path`; and the run's folder.

    Raises:
        UserError: If there is no checkpoint, or it is damaged.
    """
    if (path / MANIFEST).exists():
        try:
            return verify_checkpoint(path), path.resolve().parent.parent
        except DamagedCheckpointError as reason:
            raise UserError(f"{path} is damaged: {reason}; its run's folder works if it has an intact one") from None
    found = newest_intact(path, lambda line: console.print(line, soft_wrap=True))
    if found is None:
        raise UserError(f"{path} holds no checkpoint; train one with --output-dir {path}")
    return found, path


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


def is_training(run: Path) -> bool:
    """Return True if another process holds the lock RUN/running; also where locks cannot be tested."""
    try:
        handle = os.open(run / _LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


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
