"""Describe what a step computes and communicates."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.table import Table

from planner.cards.card import MIB
from planner.search.candidate import Candidate
from planner.time.network import node_links, ring_bytes
from planner.time.throughput import operations_share

_LABELS = {
    "keys": "gathered keys",
    "batch_norm": "BatchNorm statistics",
    "gradients": "gradients",
    "parameters": "gathered parameters",
}
_PARTS = ("encoder", "momentum_encoder", "heads", "loss")


def describe_operations(candidate: Candidate) -> str:
    """Return the share of each part in a step's operations; heads and loss run on the per-device batch at once."""
    shares = operations_share(candidate.flops)
    parts = ", ".join(f"{part.replace('_', ' ')} {shares.get(part, 0):.1%}" for part in _PARTS)
    return f"Counted operations of a step, per card: {parts}."


def communication_report(candidate: Candidate) -> list[RenderableType]:
    """Return a table of a step's collectives and, for several nodes, their time; empty for one process."""
    if not candidate.collectives:
        return []
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("communication per step")
    for name in ("operation", "GPUs", "times", "MiB", "sent per GPU, MiB"):
        table.add_column(name, justify="left" if name == "operation" else "right")
    for each in sorted(candidate.collectives, key=lambda each: list(_LABELS).index(each.what)):
        figures = f"{each.size_bytes / MIB:,.1f}", f"{ring_bytes(each) / MIB:,.1f}"
        table.add_row(_LABELS[each.what], each.operation, f"{each.processes:,}", f"{each.times:,}", *figures)
    note = "Counted in the trace; the last column assumes a ring."
    if candidate.status_exchanges:
        note += f" All processes exchange their status {candidate.status_exchanges:,} times, through the CPU."
    return [table, note, *_between_nodes(candidate)]


def _between_nodes(candidate: Candidate) -> list[RenderableType]:
    hardware = candidate.recipe.hardware
    if hardware.num_nodes == 1:
        return []
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("between nodes", "seconds sending", "share of a step"):
        table.add_column(name, justify="right")
    for link in node_links(hardware, candidate.collectives, candidate.computing_seconds):
        table.add_row(f"{link.gbits_per_second} Gbit/s", f"{link.seconds:,.2f}", f"{link.share:.1%}")
    per_node = hardware.num_devices // hardware.num_nodes
    users = f"its {per_node} GPUs share" if per_node > 1 else "its GPU uses"
    return [
        table,
        f"Predicted, with {candidate.computing_seconds:,.1f} s of computation. Each node has one link with this "
        f"bandwidth in each direction, which {users}. GPUs of a node reduce among themselves first; all keys of a node "
        "cross the link. Nothing overlaps; latency is left out.",
    ]
