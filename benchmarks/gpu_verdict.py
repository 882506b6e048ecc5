"""What `gpu_validate.py`'s rows say: how far off, group by group, and which target is missed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from moco_accel.common.console import console

TARGETS = {"median": 0.015, "p95": 0.04, "max": 0.08}
MIB = 1 << 20

Row = dict[str, Any]


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """Rows that were measured, by how far off the prediction of reserved bytes is."""
    return sorted((row for row in rows if "ratio" in row), key=lambda row: -abs(row["ratio"] - 1))


def told(row: Row) -> str:
    """A row in a few words."""
    if "ratio" in row:
        return f"reserved {row['ratio'] - 1:+.2%}, allocated {row['ratio_allocated'] - 1:+.2%}"
    return str(row.get("error") or row.get("skipped") or "out of memory")


def errors_of(rows: Sequence[Row], ratio: str) -> list[float]:
    """|predicted / measured - 1|, ascending."""
    return sorted(abs(row[ratio] - 1) for row in rows if ratio in row)


def spread(errors: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile (nearest rank) and largest."""
    nearest = math.ceil(0.95 * len(errors)) - 1
    return {"median": statistics.median(errors), "p95": errors[nearest], "max": errors[-1]}


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """All rows that were measured, and the same by family, by precision and by the allocator's kind of segments."""
    found = {"all": [row for row in rows if "ratio" in row]}
    for row in found["all"]:
        memory = row["recipe"]["memory"]
        segments = "expandable" if memory["expandable_segments"] else "fixed segments"
        for kind in (row["family"], f"precision {memory['mixed_precision']}", segments):
            found.setdefault(kind, []).append(row)
    return found


def failures(rows: Sequence[Row]) -> list[str]:
    """What misses a target, a line each; nothing measured is a miss too."""
    errors = errors_of(rows, "ratio")
    found = [f"{row['name']}: {row['error']}" for row in rows if "error" in row]
    found += [f"{row['name']} was said to fit and ran out of memory" for row in rows if row.get("oom")]
    for row in (row for row in rows if "measured" in row):
        measured = row["measured"]
        if row["card_gib"] and measured["retries"]:
            found.append(f"{row['name']} only just fitted: {measured['retries']} allocations were tried again")
        if measured["expandable_segments"] != row["recipe"]["memory"]["expandable_segments"]:
            found.append(f"{row['name']}: the allocator was not set as the recipe says")
    if not errors:
        return [*found, "nothing was measured"]
    return found + [
        f"{name} of reserved bytes is off by {value:.1%}, target {TARGETS[name]:.1%}"
        for name, value in spread(errors).items()
        if value > TARGETS[name]
    ]


def show(rows: Sequence[Row]) -> None:
    """Every row, the worst first; then how far off each group is; then the verdict."""
    columns = ("reserved, MiB: predicted", "measured", "off", "allocated off", "outside, MiB", "retries", "s/step")
    table = Table("configuration", *columns, box=None)
    for row in worst_first(rows):
        measured, predicted = row["measured"], row["predicted_bytes"]
        outside = f"{row['predicted_outside_bytes'] // MIB:,} / {row['measured_outside_bytes'] // MIB:,}"
        table.add_row(
            row["name"], f"{predicted['peak_reserved'] // MIB:,}", f"{measured['peak_reserved_bytes'] // MIB:,}",
            f"{row['ratio'] - 1:+.2%}", f"{row['ratio_allocated'] - 1:+.2%}", outside,
            str(measured["retries"]), f"{measured['seconds_per_step']:.3f}",
        )  # fmt: skip
    console.print(table)
    summary = Table("off by", "rows", *("reserved: median", "p95", "max", "allocated: median", "p95", "max"), box=None)
    for name, members in groups(rows).items():
        both = [errors_of(members, ratio) for ratio in ("ratio", "ratio_allocated")]
        if members:
            figures = [f"{value:.2%}" for errors in both for value in spread(errors).values()]
            summary.add_row(name, str(len(members)), *figures)
    console.print(summary)
    for row in rows:
        if "skipped" in row:
            console.print(f"[yellow]left out[/] {row['name']}: {escape(row['skipped'])}")
    missed = failures(rows)
    for line in missed:
        console.print(f"[red]missed[/] {escape(line)}", soft_wrap=True)
    if not missed:
        targets = ", ".join(f"{name} {value:.1%}" for name, value in TARGETS.items())
        console.print(f"[green]Every target is met[/] (reserved: {targets}; what was said to fit fitted at once)")
