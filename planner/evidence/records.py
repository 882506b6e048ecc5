"""Read and append measurements: one JSON object per line. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moco_accel.common.errors import UserError

Rows = Sequence[Mapping[str, Any]]
SHIPPED = Path(__file__).parents[2] / "benchmarks" / "results"


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
