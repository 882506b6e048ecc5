"""What lies in a run's folder: its checkpoints, which of them is newest, whole, best, and which may go.

RUN/latest                      the name of the newest whole checkpoint
RUN/best                        the name of the best by kNN, and its accuracy
RUN/checkpoints/step_00000200   step_00000200.partial while it is written, .removed while it is removed, .damaged if so
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from rich.markup import escape
from torch import nn

from moco_accel.checkpoints.checkpoint import Checkpoint, check_checkpoint, load_encoder_from
from moco_accel.checkpoints.manifest import MANIFEST, DamagedError
from moco_accel.common.atomic_files import read_ordinary, write_atomically
from moco_accel.common.errors import UserError
from moco_accel.recipe.schema import Recipe

_NAME = re.compile(r"step_(\d{8,12})")
_LEFTOVER = re.compile(r"step_\d{8,12}\.(partial|removed)")
_MAX_POINTER_BYTES = 256


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def checkpoint_folders(run: Path) -> list[Path]:
    """All that are named as checkpoints are, the newest first."""
    folder = run / "checkpoints"
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


STOPPED = "stopped"
"""Is there while a run that was told to end waits to be resumed."""


def refuse_used_folder(run: Path) -> None:
    """Raises UserError where a new run cannot begin."""
    if checkpoint_folders(run) or (run / "latest").exists():
        raise UserError(f"--output-dir={run} already holds a run; --resume goes on with it, or name a new folder")


def newest_whole(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none at all. Raises UserError if all are damaged.

    `say` hears, in one line each, why a newer one is passed over. What `latest` says is not needed for it.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file, not a run's folder")
    folders = checkpoint_folders(run)
    reasons = []
    for folder in folders:
        try:
            found = check_checkpoint(folder)
        except DamagedError as reason:
            reasons.append(f"{folder} is damaged: {reason}")
            continue
        for why in reasons:
            say(f"[yellow]{escape(why)}; {found.folder.name}, the one before, takes its place[/]")
        _compare_pointer(run, found.folder.name, say)
        return found
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise UserError(f"{reasons[0]}{more}; no checkpoint of {run} is whole: a new --output-dir starts anew")
    return None


def _compare_pointer(run: Path, newest: str, say: Callable[[str], None]) -> None:
    if not _is_there(run / "latest"):
        return
    named = _read_pointer(run / "latest")
    if named is None:
        say(f"[yellow]{escape(str(run / 'latest'))} does not name a checkpoint; {newest} is the newest whole one[/]")
    elif int(named.removeprefix("step_")) < int(newest.removeprefix("step_")):
        say(f"{newest} is whole and newer than {named}, which latest names; to go back, move newer ones away")


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _read_pointer(path: Path) -> str | None:
    """The checkpoint that `latest` or `best` names: a bare name, never a path."""
    try:
        words = read_ordinary(path, _MAX_POINTER_BYTES).decode().split()
    except (OSError, ValueError):
        return None
    return words[0] if words and _NAME.fullmatch(words[0]) else None


def point_latest(run: Path, checkpoint: Path) -> None:
    write_atomically(run / "latest", checkpoint.name + "\n")


def mark_best(run: Path, checkpoint: Path, accuracy: float) -> None:
    """Keep this checkpoint, whatever comes after it, until a better one is named."""
    write_atomically(run / "best", f"{checkpoint.name} {accuracy:.6f}\n")


def best_accuracy(run: Path) -> float:
    """kNN accuracy of the checkpoint that RUN/best names; -1 where it names none."""
    try:
        return float(read_ordinary(run / "best", _MAX_POINTER_BYTES).split()[1])
    except (OSError, ValueError, IndexError):
        return -1.0


def remove_old(run: Path, keep: int) -> None:
    """All checkpoints but the newest `keep` and the best; and what an earlier process left half written."""
    best = _read_pointer(run / "best")
    for old in checkpoint_folders(run)[keep:]:
        if old.name != best and old.is_dir() and not old.is_symlink():
            old.replace(old.with_suffix(".removed"))  # a half removed one is none
    remove_leftovers(run)


def set_aside(run: Path, whole: Path) -> None:
    """Damaged checkpoints newer than the `whole` one a run goes on from: out of the way, for the user to look at."""
    folders = checkpoint_folders(run)
    for damaged in folders[: folders.index(whole)]:
        aside = damaged.with_suffix(".damaged")
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        damaged.replace(aside)


def remove_leftovers(run: Path) -> None:
    """What a killed process left behind, by the names that only checkpoints in the making bear."""
    folder = run / "checkpoints"
    for path in folder.iterdir() if folder.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def load_encoder(path: Path) -> tuple[Recipe, nn.Module, Path]:
    """Recipe, trained encoder (query side) and run folder of a run or of one of its checkpoints. Raises UserError."""
    checkpoint, run = find_checkpoint_of(path)
    return checkpoint.recipe, load_encoder_from(checkpoint), run


def find_checkpoint_of(path: Path) -> tuple[Checkpoint, Path]:
    """A run's newest whole checkpoint, or the one whose folder `path` is; and the run's. Raises UserError."""
    from moco_accel.common.console import console

    if (path / MANIFEST).exists():
        try:
            return check_checkpoint(path), path.resolve().parent.parent
        except DamagedError as reason:
            raise UserError(f"{path} is damaged: {reason}; its run's folder in its place takes a whole one") from None
    found = newest_whole(path, lambda line: console.print(line, soft_wrap=True))
    if found is None:
        raise UserError(f"{path} holds no checkpoint; train one with --output-dir {path}")
    return found, path
