"""What a run has logged, read back: its recipe, the rows of its log and of its evaluations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_accel.common.errors import UserError
from moco_accel.recipe.load import load_recipe
from moco_accel.recipe.schema import Recipe

EVALUATIONS = "evaluations.jsonl"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Logged:
    """`rows` of metrics.jsonl, of which there is one at least; `evaluations` of evaluations.jsonl."""

    run: Path
    recipe: Recipe
    rows: Rows
    evaluations: Rows

    def column(self, name: str, of_evaluations: bool = False) -> tuple[list[float], list[float]]:
        """Epochs and values, where there is one."""
        found = [row for row in (self.evaluations if of_evaluations else self.rows) if row.get(name) is not None]
        return [row["epoch"] for row in found], [row[name] for row in found]


def read_logged(run: Path) -> Logged:
    """Raises UserError for a folder that is no run's, and for one that has logged nothing yet."""
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"RUN={str(run)!r} is no run's folder: no recipe.yaml; runs/demo works after make demo")
    rows = read_rows(run / "metrics.jsonl")
    if not rows:
        raise UserError(f"{run / 'metrics.jsonl'} holds no step yet; moco-report works once the run has done one")
    if "total_steps" not in rows[-1]:
        raise UserError(f"{run / 'metrics.jsonl'} is an older moco-accel's, which logged less; a new run's works")
    return Logged(run, load_recipe(run / "recipe.yaml"), rows, read_rows(run / EVALUATIONS))


def read_rows(path: Path) -> Rows:
    """All whole rows: the last one may be being written. Raises UserError."""
    try:
        lines = path.read_text().splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]
    except ValueError:
        raise UserError(f"{path} is no log of rows in JSON; a run's own works") from None
