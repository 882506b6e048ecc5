"""Compare a run that was killed and resumed with an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moco_accel.checkpoints.checkpoint import MODEL, OPTIMIZER, RANDOM
from moco_accel.checkpoints.run_log import read_rows


def differences(run: Path, undisturbed: Path, steps: int) -> list[str]:
    """Describe each difference between the two runs; empty if they are equal."""
    found = []
    last = f"checkpoints/step_{steps:08d}"
    for name in (f"{last}/{MODEL}", f"{last}/{OPTIMIZER}", f"{last}/{RANDOM}", "latest", "recipe.yaml"):
        if (run / name).read_bytes() != (undisturbed / name).read_bytes():
            found.append(f"{name} differs")
    if (names := sorted(p.name for p in (run / "checkpoints").iterdir()))[-1] != last[-13:] or any(
        "." in name for name in names
    ):
        found.append(f"checkpoints are {names}")
    for name, read in (("metrics", _metrics), ("tiles", _tile_log), ("damaged tiles", _damaged)):
        if read(run) != read(undisturbed):
            found.append(f"{name} differ")
    if len(_tile_log(run)) != 2 * steps:
        found.append(f"tiles of {len(_tile_log(run))} steps of a process are logged")
    summaries = [json.loads((each / "summary.json").read_text()) for each in (run, undisturbed)]
    if any(summaries[0][name] != summaries[1][name] for name in ("steps", "final_loss", "damaged_tiles")):
        found.append(f"summaries are {summaries}")
    return found


def _metrics(run: Path) -> list[dict[str, Any]]:
    """Read metrics without fields that depend on time, memory, or when damaged tiles of other ranks become known."""
    timed = {"tiles_per_second", "data_wait_share", "peak_memory_mib", "damaged_tiles", "seconds", "first_step"}
    rows = read_rows(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def _damaged(run: Path) -> set[int]:
    return {row["tile"] for row in rows_of(run / "damaged_tiles.jsonl")}


def _tile_log(run: Path) -> dict[tuple[int, int], set[str]]:
    """Return the places and pixels of all launches by step and rank; each set has one element if launches agree."""
    log: dict[tuple[int, int], set[str]] = {}
    for file in run.with_suffix(".notes").glob("tiles.*.jsonl"):
        for row in rows_of(file):
            log.setdefault((row["step"], row["rank"]), set()).add(f"{row['places']} {row['pixels']}")
    return log


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Read the complete rows. A kill may leave a partial line anywhere, as several processes append to the file."""
    rows = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(row) for row in rows if row.startswith("{") and row.endswith("}")]


def logs(run: Path) -> str:
    """Return the end of the last launch's logs."""
    files = sorted(run.with_suffix(".notes").glob("log.*"), key=lambda file: file.stat().st_mtime)
    return "\n".join(f"{file.name}: {file.read_text()[-1500:]}" for file in files[-2:])
