"""Read and trim what a run has logged: the rows of its metrics and evaluations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from moco_accel.common.atomic_files import write_atomically
from moco_accel.common.errors import UserError
from moco_accel.recipe.load import load_recipe
from moco_accel.recipe.schema import Recipe

EVALUATIONS = "evaluations.jsonl"
FIRST_STEP = "first_step"
"""Key of a row of metrics.jsonl: steps done before the process that wrote it started."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RunLog:
    """What the run in folder `run` has logged: at least one row of metrics.jsonl, and rows of evaluations.jsonl."""

    run: Path
    recipe: Recipe
    rows: Rows
    evaluations: Rows

    @property
    def elapsed_seconds(self) -> float:
        """Seconds that the run has taken, in all its processes one after another."""
        return elapsed_seconds(self.rows, self.recipe)

    @property
    def first_step(self) -> int:
        """Steps done before the last process started."""
        return int(self.rows[_start_of_last_process(self.rows)]["step"])

    @property
    def seconds_before(self) -> float:
        """Seconds that the run had taken before the last process started."""
        return elapsed_seconds(self.rows[: _start_of_last_process(self.rows)], self.recipe, self.first_step)

    def column(self, name: str, of_evaluations: bool = False) -> tuple[list[float], list[float]]:
        """Return epochs and values of the rows that have a value."""
        found = [row for row in (self.evaluations if of_evaluations else self.rows) if row.get(name) is not None]
        return [row["epoch"] for row in found], [row[name] for row in found]


def read_run_log(run: Path) -> RunLog:
    """Read the log of a run, which may still be running.

    Raises:
        UserError: If `run` is not a run's folder, or has logged no step yet.
    """
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"RUN={str(run)!r} is not a run's folder: no recipe.yaml; runs/demo works after make demo")
    rows = read_rows(run / "metrics.jsonl")
    if not rows:
        raise UserError(f"{run / 'metrics.jsonl'} holds no step yet; moco-report works after the first logged step")
    if "total_steps" not in rows[-1]:
        raise UserError(f"{run / 'metrics.jsonl'} is from an older moco-accel, which logged less; a new run works")
    return RunLog(run, load_recipe(run / "recipe.yaml"), rows, read_rows(run / EVALUATIONS))


def read_rows(path: Path) -> Rows:
    """Read the complete rows of a JSON-lines file; no rows if there is no file. UserError if a row is not JSON."""
    return [row for _, row in _parse_rows(path)]


def elapsed_seconds(rows: Rows, recipe: Recipe, steps_done: int = 0) -> float:
    """Return the seconds that a run had taken after `steps_done` steps, of which `rows` are logged.

    Steps after the last row count as those that the row sums up.
    """
    if not rows:
        return 0.0
    last, before = rows[-1], 0.0
    if FIRST_STEP not in last:  # an earlier version counted the seconds of each process from 0
        before = sum(row["seconds"] for row, after in pairwise(rows) if after["seconds"] < row["seconds"])
    unlogged_tiles = max(0, steps_done - 1 - last["step"]) * recipe.batch.global_batch_size
    return float(before + last["seconds"] + unlogged_tiles / last["tiles_per_second"])


def _start_of_last_process(rows: Rows) -> int:
    """Return the index of the first row that the last process wrote."""
    if FIRST_STEP in rows[-1]:
        return next(index for index, row in enumerate(rows) if row["step"] >= rows[-1][FIRST_STEP])
    starts = [index for index, (row, after) in enumerate(pairwise(rows), 1) if after["seconds"] < row["seconds"]]
    return starts[-1] if starts else 0


def drop_rows_from_step(path: Path, step: int) -> None:
    """Drop the rows whose `step` is `step` or later, which a resumed run logs again. Create the file if absent."""
    kept = [line for line, row in _parse_rows(path) if row["step"] < step] if step else []
    write_atomically(path, "".join(line + "\n" for line in kept))


def _parse_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return each complete line and its row. The last line is incomplete if it is being written."""
    try:
        lines = path.read_text().splitlines() if path.is_file() else []
        return [(line, json.loads(line)) for line in lines if line.endswith("}")]
    except ValueError:
        raise UserError(f"{path} is not a log of rows in JSON; the log of a run works") from None
