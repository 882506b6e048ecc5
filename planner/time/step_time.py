"""Predict a step's time: its counted operations on a card, and its collectives between nodes. Imports no torch.

Bytes between nodes are counted, rings are assumed. Keys are gathered before the first forward with gradient and
gradients are reduced after the last backward, so nothing overlaps and the seconds add to those of computation. Latency
is left out, also that of status exchanges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moco_accel.recipe.hardware_sections import Hardware
from moco_accel.recipe.schema import Recipe
from planner.cards.card import Card
from planner.trace.events import CollectiveTotal

UTILISATION = 0.35
"""Assumed share of a card's peak throughput that training reaches: usual for ViTs in 16 bits, a guess for any card."""
_GBITS_PER_SECOND = (1, 10, 100)


def predicted_tiles_per_second(flops: float, recipe: Recipe, card: Card) -> float:
    """Predict the tiles per second of all devices together from a step's operations on one, without communication."""
    seconds = flops / (card.tensor_tflops * 1e12 * UTILISATION)
    return recipe.batch.global_batch_size / seconds


def operations_share(flops: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each part in a step's counted operations."""
    total = sum(flops.values())
    return {part: count / total for part, count in flops.items()}


@dataclass(frozen=True)
class NodeLink:
    """A link per node that its GPUs share, the predicted time of a step's collectives, and their share of the step."""

    gbits_per_second: int
    seconds: float
    share: float


def ring_bytes(collective: CollectiveTotal, parties: int | None = None) -> float:
    """Return the bytes that each process sends in a ring: n - 1 of n parts, twice that for an all-reduce.

    `parties` are the members of the ring; None takes the processes of the collective.
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
    bits = 8 * node_link_bytes(hardware, collectives)
    seconds_by_link = {gbits: bits / (gbits * 1e9) for gbits in _GBITS_PER_SECOND}
    return [NodeLink(gbits, each, each / (each + computing_seconds)) for gbits, each in seconds_by_link.items()]
