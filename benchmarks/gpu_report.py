"""Report on the rows of `gpu_validate.py`: prediction errors by group, and missed targets."""

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
    """Return the measured rows, those with the largest error of reserved bytes first."""
    return sorted((row for row in rows if "ratio" in row), key=lambda row: -abs(row["ratio"] - 1))


def describe_row(row: Row) -> str:
    """Describe the result of a row in a few words."""
    if "ratio" in row:
        return f"reserved {row['ratio'] - 1:+.2%}, allocated {row['ratio_allocated'] - 1:+.2%}"
    return str(row.get("error") or row.get("skipped") or "out of memory")


def _relative_errors(rows: Sequence[Row], ratio: str) -> list[float]:
    """Return |predicted / measured - 1| of the measured rows, ascending."""
    return sorted(abs(row[ratio] - 1) for row in rows if ratio in row)


def summarise_errors(errors: Sequence[float]) -> dict[str, float]:
    """Return the median, the 95th percentile (nearest rank) and the maximum of ascending errors."""
    nearest = math.ceil(0.95 * len(errors)) - 1
    return {"median": statistics.median(errors), "p95": errors[nearest], "max": errors[-1]}


def group_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return all measured rows, and the same by family, by precision and by kind of segments."""
    groups = {"all": [row for row in rows if "ratio" in row]}
    for row in groups["all"]:
        memory = row["recipe"]["memory"]
        segments = "expandable" if memory["expandable_segments"] else "fixed segments"
        for kind in (row["family"], f"precision {memory['mixed_precision']}", segments):
            groups.setdefault(kind, []).append(row)
    return groups


def find_failures(rows: Sequence[Row]) -> list[str]:
    """List failed rows and missed targets, one line each; it is a failure if nothing was measured."""
    errors = _relative_errors(rows, "ratio")
    failures = [f"{row['name']}: {row['error']}" for row in rows if "error" in row]
    failures += [f"{row['name']}: out of memory, although it was predicted to fit" for row in rows if row.get("oom")]
    for row in (row for row in rows if "measured" in row):
        measured = row["measured"]
        if row["card_gib"] and measured["retries"]:
            failures.append(f"{row['name']}: almost out of memory, {measured['retries']} allocations were retried")
        if measured["expandable_segments"] != row["recipe"]["memory"]["expandable_segments"]:
            failures.append(f"{row['name']}: the allocator has other settings than the recipe")
    if not errors:
        return [*failures, "no row was measured"]
    return failures + [
        f"{name} error of reserved bytes is {value:.1%}, target {TARGETS[name]:.1%}"
        for name, value in summarise_errors(errors).items()
        if value > TARGETS[name]
    ]


def print_report(rows: Sequence[Row]) -> None:
    """Print all rows, the largest error first, then the errors by group, then the failures."""
    columns = ("reserved, MiB: predicted", "measured", "error", "allocated error", "outside, MiB", "retries", "s/step")
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
    summary = Table(
        "error of", "rows", *("reserved: median", "p95", "max", "allocated: median", "p95", "max"), box=None
    )
    for name, members in group_rows(rows).items():
        both = [_relative_errors(members, ratio) for ratio in ("ratio", "ratio_allocated")]
        if members:
            figures = [f"{value:.2%}" for errors in both for value in summarise_errors(errors).values()]
            summary.add_row(name, str(len(members)), *figures)
    console.print(summary)
    for row in rows:
        if "skipped" in row:
            console.print(f"[yellow]skipped[/] {row['name']}: {escape(row['skipped'])}")
    failures = find_failures(rows)
    for line in failures:
        console.print(f"[red]failed[/] {escape(line)}", soft_wrap=True)
    if not failures:
        targets = ", ".join(f"{name} {value:.1%}" for name, value in TARGETS.items())
        console.print(
            f"[green]All targets are met[/] (error of reserved bytes: {targets}; all plans fit without retries)"
        )
