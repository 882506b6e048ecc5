"""What a step's sending costs: bytes over a ring, and seconds between nodes. Counted bytes, assumed rings; no torch.

Gradients are sent when both views have had their backward, keys before the first: nothing is overlapped, so that
seconds of sending add to those of computing. A round trip's time is left out, of meetings too.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.memory.candidate import Candidate, SentTotal

GBITS_PER_SECOND = (1, 10, 100)


@dataclass(frozen=True)
class Between:
    """Nodes joined by links of `gbits_per_second` each way, one per node, which its GPUs share.

    `seconds` of a step are spent on sending, `share` of the whole.
    """

    gbits_per_second: int
    seconds: float
    share: float


def ring_bytes(sent: SentTotal, parties: int | None = None) -> float:
    """What each process, or each of `parties`, sends on in a ring: n - 1 of n parts, twice that where all are reduced.

    (In the one ring parts are summed, in the other the sums go round.)
    """
    parties = parties or sent.processes
    ways = 2 if sent.operation == "all-reduce" else 1
    return ways * sent.size_bytes * (parties - 1) / parties


def node_link_bytes(candidate: Candidate) -> float:
    """What a node's link carries each way in a step, over rings of nodes.

    Those of a node that take part have made their sum, or gather for the whole node; several groups share the link.
    """
    hardware = candidate.recipe.hardware
    per_node = hardware.num_devices // hardware.num_nodes
    total = 0.0
    for sent in candidate.sent:
        nodes = max(sent.processes * sent.apart // per_node, 1)
        groups = per_node * nodes // sent.processes
        total += groups * ring_bytes(sent, nodes)
    return total


def between_nodes(candidate: Candidate) -> list[Between]:
    """For slow and fast links; none where one node holds all."""
    if candidate.recipe.hardware.num_nodes == 1:
        return []
    found, computing = [], candidate.seconds_per_step
    for gbits in GBITS_PER_SECOND:
        seconds = 8 * node_link_bytes(candidate) / (gbits * 1e9)
        found.append(Between(gbits, seconds, seconds / (seconds + computing)))
    return found


def operations_share(candidate: Candidate) -> dict[str, float]:
    """Of a process's counted operations in a step, by part."""
    total = sum(candidate.flops.values())
    return {part: flops / total for part, flops in candidate.flops.items()}
