"""RUN/best: the checkpoint with the highest kNN accuracy, among those that are there and whole.

RUN/evaluations.jsonl decides, not RUN/best, which a run that goes back leaves behind. Only evaluations of one set of
labelled tiles are compared, and the earlier one wins a tie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape

from moco_accel.checkpoints.checkpoint import Checkpoint, verify_checkpoint
from moco_accel.checkpoints.manifest import MANIFEST, DamagedCheckpointError
from moco_accel.checkpoints.run_folder import checkpoint_folder, mark_best, read_pointer
from moco_accel.checkpoints.run_log import EVALUATIONS, Rows, read_rows

EVALUATION_SET = "evaluation_set"
"""Key of an evaluation's checksum of its labelled tiles and kNN settings; evaluations without it are older."""
_BASELINES = ("knn_top1_random_init", "knn_top1_mean_colour")
_ROUNDING = 1e-9

Row = dict[str, Any]


@dataclass(frozen=True)
class BestCheckpoint:
    """The best checkpoint of a run.

    Attributes:
        row: Its row of evaluations.jsonl.
        compared: Number of evaluations of the same labelled tiles.
        others: Number of evaluations of other labelled tiles.
        passed_over: The reason why each better evaluation does not count.
    """

    checkpoint: Checkpoint
    row: Row
    compared: int = 1
    others: int = 0
    passed_over: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return its name, its accuracy, and why it is the best one, in one line."""
        epoch = f" after epoch {self.row['epoch']:g}" if "epoch" in self.row else ""
        text = f"{self.checkpoint.folder.name}, kNN {self.row['knn_top1']:.1%}{epoch}"
        if self.compared > 1:
            text += f", the best of {self.compared} evaluations"
        if self.others:
            text += f" ({self.others} of other labelled tiles or kNN settings are not compared)"
        if self.passed_over:
            text += f"; {len(self.passed_over)} better without a whole checkpoint, e.g. {self.passed_over[0]}"
        return text


def find_best(run: Path) -> BestCheckpoint | None:
    """Return the best checkpoint of a run; None if no evaluated checkpoint is whole.

    The labelled tiles are those of the last evaluation. Without a row of an evaluation, RUN/best decides.
    """
    rows = _knn_rows(run)
    same = [row for row in rows if _is_of_same_set(row, rows[-1])] or _row_of_pointer(run)
    left, passed_over = list(same), list[str]()
    while left:
        row = _first_of_highest(left)
        left.remove(row)
        folder = checkpoint_folder(run, row["step"])
        try:
            checkpoint = verify_checkpoint(folder)
            return BestCheckpoint(checkpoint, row, len(same), len(rows) - len(same) if rows else 0, passed_over)
        except DamagedCheckpointError as reason:
            why = f"damaged: {reason}" if folder.exists() else "gone"
            passed_over.append(f"{folder.name} with {row['knn_top1']:.1%}, which is {why}")
    return None


def refresh_best(run: Path, log: Callable[[str], None]) -> None:
    """Make RUN/best name the best checkpoint; remove it if there is none. Log a line if it changes."""
    pointer = run / "best"
    if not (pointer.exists() or pointer.is_symlink()) and not _knn_rows(run):
        return
    named, found = read_pointer(pointer), find_best(run)
    if found is None:
        pointer.unlink(missing_ok=True)
        if named is not None:
            log(f"[yellow]{escape(str(pointer))} named {named}, and no evaluated checkpoint is left: it is removed[/]")
    elif found.checkpoint.folder.name != named:
        mark_best(run, found.checkpoint.folder, found.row["knn_top1"])
        log(f"[yellow]{escape(f'{pointer} names {found}')}; before, it named {named or 'no checkpoint'}[/]")


def is_new_best(run: Path, row: Row, log: Callable[[str], None]) -> bool:
    """Return True if the evaluation `row`, which has been logged, is better than those of all other checkpoints.

    `log` receives a line if the evaluation before it was of other labelled tiles.
    """
    before = [other for other in _knn_rows(run) if other["step"] < row["step"]]
    if "knn_top1" not in row:
        return False
    if before and not _is_of_same_set(before[-1], row):
        log("the labelled tiles or the kNN settings have changed: RUN/best compares evaluations from here on")
    return not any(
        other["knn_top1"] >= row["knn_top1"] - _ROUNDING
        for other in before
        if _is_of_same_set(other, row) and (checkpoint_folder(run, other["step"]) / MANIFEST).exists()
    )


def _knn_rows(run: Path) -> Rows:
    return [row for row in read_rows(run / EVALUATIONS) if "knn_top1" in row]


def _row_of_pointer(run: Path) -> Rows:
    words = (run / "best").read_text().split() if read_pointer(run / "best") else []
    try:
        return [{"step": int(words[0].removeprefix("step_")), "knn_top1": float(words[1])}]
    except (ValueError, IndexError):
        return []


def _is_of_same_set(row: Row, other: Row) -> bool:
    """Compare the labelled tiles; equal baselines stand for equal tiles in older rows."""
    keys = (EVALUATION_SET,) if EVALUATION_SET in row and EVALUATION_SET in other else _BASELINES
    return all(row.get(key) == other.get(key) for key in keys)


def _first_of_highest(rows: Rows) -> Row:
    highest = max(row["knn_top1"] for row in rows)
    return min((row for row in rows if row["knn_top1"] >= highest - _ROUNDING), key=lambda row: row["step"])
