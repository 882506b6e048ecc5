"""Read and append measurements, one JSON object per line, and derive how far predictions may be off. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_accel.common.errors import UserError
from moco_accel.recipe.encoder_names import ASSUMED_PEAK_ERROR, encoder_family
from planner.cards.card import Card

Rows = Sequence[Mapping[str, Any]]
SHIPPED = Path(__file__).parents[2] / "benchmarks" / "results"
_MIN_MEASUREMENTS = 8  # below, the largest measured error is not used as the interval


def cache_folder() -> Path:
    """Return the user's folder for cached plans and measurements."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moco-accel"


def measured_path() -> Path:
    """Return the path of the measurements of this machine."""
    return cache_folder() / "measured.jsonl"


def load_measurements() -> list[dict[str, Any]]:
    """Return the measurements that ship with the project and those of this machine.

    Raises:
        UserError: If a file is damaged, see `read_rows`.
    """
    files = [*sorted(SHIPPED.glob("gpu_validate_*.jsonl")), measured_path()]
    return [row for path in files for row in read_rows(path) if "ratio" in row]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line of JSON, after removing an incomplete last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row).encode() + b"\n"
    with path.open("a+b") as file:
        file.seek(0)
        text = file.read()
        last = text.rpartition(b"\n")[2]
        if last and _parse(last) is None:
            file.truncate(len(text) - len(last))
        elif last:
            line = b"\n" + line
        file.write(line)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines, without an incomplete last line; none if there is no file.

    Raises:
        UserError: If any other line is not a JSON object.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.is_file() else [], start=1):
        row = _parse(line)
        if row is not None:
            rows.append(row)
        elif line.endswith(b"\n"):
            raise UserError(f"{path} line {number} is not a row of JSON; delete that line, or the file")
    return rows


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


@dataclass(frozen=True)
class PredictionError:
    """The share by which a predicted peak may be off in either direction, and where it comes from, in words."""

    share: float
    source: str

    def interval(self, peak_bytes: int) -> tuple[int, int]:
        """Return the lowest and the highest peak."""
        return int(peak_bytes * (1 - self.share)), int(peak_bytes * (1 + self.share))


def prediction_error(encoder: str, card: Card, rows: Rows) -> PredictionError:
    """Return the error of predictions for this family of encoders on this kind of card.

    It is the largest error in `rows` if enough configurations were measured on cards of the same compute capability.
    Otherwise it is assumed, or the largest error on any card if that is larger.
    """
    kind = encoder_family(encoder)
    measured = [row for row in rows if encoder_family(row["recipe"]["encoder"]["name"]) == kind]
    similar = _on_similar_cards(measured, card)
    if len(similar) >= _MIN_MEASUREMENTS:
        share, source = _largest_error(similar), f"the worst of {_count_by_card(similar)}"
    else:
        share, source = max(ASSUMED_PEAK_ERROR[kind], _largest_error(measured)), "assumed; checked against "
        source += f"only {_count_by_card(measured)}" if measured else "no card yet"
    return PredictionError(share, f"{kind} ± {share:.0%}: {source}")


def evidence_label(card: Card, rows: Rows) -> str:
    """Return which kind of evidence supports the figures for this kind of card."""
    similar = _on_similar_cards(rows, card)
    if not similar:
        return "predicted, not yet measured on this kind of card"
    return f"predicted; predictions were measured on such cards: {_count_by_card(similar)}"


def _on_similar_cards(rows: Rows, card: Card) -> Rows:
    return [row for row in rows if row["measured"]["compute_capability"] == card.compute_capability]


def _largest_error(rows: Rows) -> float:
    return max((abs(1 / row["ratio"] - 1) for row in rows), default=0.0)


def _count_by_card(rows: Rows) -> str:
    where = sorted({f"{row['measured']['gpu']} with torch {row['measured']['torch']}" for row in rows})
    return f"{len(rows)} measured configuration{'s' if len(rows) > 1 else ''} ({', '.join(where)})"
