"""How far off predictions were where they were measured, and what is assumed where nothing was. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_accel.common.errors import UserError
from moco_accel.recipe.constants import ASSUMED_SHARES, family
from planner.cards.devices import Card

Rows = Sequence[Mapping[str, Any]]
SHIPPED = Path(__file__).parents[2] / "benchmarks" / "results"
_ENOUGH_ROWS = 8  # measured configurations from which their worst error counts as the interval
PREDICTED = "predicted, not yet measured on this kind of card"


@dataclass(frozen=True)
class Evidence:
    """`share`: a peak may be off by that much, either way. `checked`: against what that was checked."""

    share: float
    checked: str

    def interval(self, peak_bytes: int) -> tuple[int, int]:
        return int(peak_bytes * (1 - self.share)), int(peak_bytes * (1 + self.share))


def evidence(encoder: str, card: Card, rows: Rows) -> Evidence:
    """What `rows` of measurements say about predictions for an encoder of that family on a card of that kind.

    The worst counts where enough were measured on cards of the same compute capability; else what is assumed, or the
    worst of any card if that is more.
    """
    kind = family(encoder)
    measured = [row for row in rows if family(row["recipe"]["encoder"]["name"]) == kind]
    alike = [row for row in measured if row["measured"]["compute_capability"] == card.compute_capability]
    if len(alike) >= _ENOUGH_ROWS:
        share, origin = _worst(alike), f"the worst of {_cards(alike)}"
    else:
        share, origin = max(ASSUMED_SHARES[kind], _worst(measured)), "assumed; checked against "
        origin += f"only {_cards(measured)}" if measured else "no card yet"
    return Evidence(share, f"{kind} ± {share:.0%}: {origin}")


def _worst(rows: Rows) -> float:
    return max((abs(1 / row["ratio"] - 1) for row in rows), default=0.0)


def standing(card: Card, rows: Rows) -> str:
    """What may be said of predictions for this kind of card."""
    alike = [row for row in rows if row["measured"]["compute_capability"] == card.compute_capability]
    return f"predicted; predictions were measured on such cards: {_cards(alike)}" if alike else PREDICTED


def _cards(rows: Rows) -> str:
    where = sorted({f"{row['measured']['gpu']} with torch {row['measured']['torch']}" for row in rows})
    return f"{len(rows)} measured configuration{'s' if len(rows) > 1 else ''} ({', '.join(where)})"


def cache_folder() -> Path:
    """Where what was found out on this machine is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moco-accel"


def measured_path() -> Path:
    """Where this machine's own measurements are kept."""
    return cache_folder() / "measured.jsonl"


def all_rows() -> list[dict[str, Any]]:
    """The measurements that come with the project, and this machine's own. Raises UserError, see `read_rows`."""
    files = [*sorted(SHIPPED.glob("gpu_validate_*.jsonl")), measured_path()]
    return [row for path in files for row in read_rows(path) if "ratio" in row]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One more line of JSON; what remains of a line that was cut off while written goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row).encode() + b"\n"
    with path.open("a+b") as file:
        file.seek(0)
        text = file.read()
        unended = text.rpartition(b"\n")[2]
        if unended and _parsed(unended) is None:
            file.truncate(len(text) - len(unended))
        elif unended:
            line = b"\n" + line
        file.write(line)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, none if there is no file; a torn last line is left out.

    Raises UserError where any other line is no row.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.is_file() else [], start=1):
        row = _parsed(line)
        if row is not None:
            rows.append(row)
        elif line.endswith(b"\n"):
            raise UserError(f"{path} line {number} is not a row of JSON; delete that line, or the file")
    return rows


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
