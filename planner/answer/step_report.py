"""What a step is made of, for people: its operations by part, and what it sends to other processes."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.table import Table

from planner.cards.devices import MIB
from planner.memory.candidate import Candidate
from planner.time.network import between_nodes, operations_share, ring_bytes

_SENT = {
    "keys": "gathered keys",
    "batch_norm": "BatchNorm's sums",
    "gradients": "gradients",
    "parameters": "gathered parameters",
}
_PARTS = ("encoder", "momentum_encoder", "heads", "loss")


def operations(candidate: Candidate) -> str:
    """Where a step's operations go; the heads and the loss run on the whole batch of a process at once."""
    shares = operations_share(candidate)
    parts = ", ".join(f"{part.replace('_', ' ')} {shares.get(part, 0):.1%}" for part in _PARTS)
    return f"Of a step's counted operations, on each card: {parts}."


def sending(candidate: Candidate) -> list[RenderableType]:
    """What is sent per step, and between nodes how long that takes; nothing for one process."""
    if not candidate.sent:
        return []
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("what is sent per step")
    for name in ("operation", "GPUs", "times", "MiB", "each sends, MiB"):
        table.add_column(name, justify="left" if name == "operation" else "right")
    for sent in sorted(candidate.sent, key=lambda sent: list(_SENT).index(sent.what)):
        figures = f"{sent.size_bytes / MIB:,.1f}", f"{ring_bytes(sent) / MIB:,.1f}"
        table.add_row(_SENT[sent.what], sent.operation, f"{sent.processes:,}", f"{sent.times:,}", *figures)
    meetings = f" {candidate.meetings:,} times all processes meet first, a word from each through the CPU."
    counted = "Counted in the trace; each sends over a ring."
    return [table, counted + (meetings if candidate.meetings else ""), *_between(candidate)]


def _between(candidate: Candidate) -> list[RenderableType]:
    hardware = candidate.recipe.hardware
    if hardware.num_nodes == 1:
        return []
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("between nodes", "seconds sending", "share of a step"):
        table.add_column(name, justify="right")
    for link in between_nodes(candidate):
        table.add_row(f"{link.gbits_per_second} Gbit/s", f"{link.seconds:,.2f}", f"{link.share:.1%}")
    per_node = hardware.num_devices // hardware.num_nodes
    gpus = f"its {per_node} GPUs share" if per_node > 1 else "which is its GPU's"
    return [
        table,
        f"Predicted, with {candidate.seconds_per_step:,.1f} s of computing: one link per node each way, {gpus}, sums "
        "made inside a node first, all keys of a node crossing, nothing overlapped, round trips left out.",
    ]
