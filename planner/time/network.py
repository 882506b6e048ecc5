"""Predict the time that a step's collectives take between nodes. Bytes are counted, rings are assumed; no torch.

Keys are gathered before the first forward with gradient and gradients are reduced after the last backward, so nothing
overlaps and the seconds add to those of computation. Latency is left out, also that of status exchanges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moco_accel.recipe.hardware_sections import Hardware
from planner.trace.events import CollectiveTotal

GBITS_PER_SECOND = (1, 10, 100)


@dataclass(frozen=True)
class NodeLink:
    """A link per node that its GPUs share.

    Attributes:
        gbits_per_second: Bandwidth in each direction.
        seconds: Predicted time of a step's collectives.
        share: Their share of the step's time.
    """

    gbits_per_second: int
    seconds: float
    share: float


def ring_bytes(collective: CollectiveTotal, parties: int | None = None) -> float:
    """Return the bytes that each process sends in a ring: n - 1 of n parts, twice that for an all-reduce.

    Args:
        parties: Members of the ring; None takes the processes of the collective.
    """
    parties = parties or collective.processes
    rounds = 2 if collective.operation == "all-reduce" else 1
    return rounds * collective.size_bytes * (parties - 1) / parties


def node_link_bytes(hardware: Hardware, collectives: Sequence[CollectiveTotal]) -> float:
    """Return the bytes that a node's link carries in each direction in a step, over rings of nodes.

    The processes of a node reduce among themselves first, or gather once for the node. Several groups share the link.
    """
    per_node = hardware.num_devices // hardware.num_nodes
    total = 0.0
    for collective in collectives:
        nodes = max(collective.processes * collective.apart // per_node, 1)
        groups = per_node * nodes // collective.processes
        total += groups * ring_bytes(collective, nodes)
    return total


def node_links(hardware: Hardware, collectives: Sequence[CollectiveTotal], computing_seconds: float) -> list[NodeLink]:
    """Return the predicted cost of communication for slow and fast links; empty for one node."""
    if hardware.num_nodes == 1:
        return []
    links = []
    for gbits in GBITS_PER_SECOND:
        seconds = 8 * node_link_bytes(hardware, collectives) / (gbits * 1e9)
        links.append(NodeLink(gbits, seconds, seconds / (seconds + computing_seconds)))
    return links
