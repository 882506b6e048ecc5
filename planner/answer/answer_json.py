"""The planner's answer for programs: all that the report says, as JSON. Sizes are bytes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from planner.cards.devices import Card
from planner.cards.fleet import Fleet
from planner.memory.candidate import Candidate, Changes, PapersWay
from planner.memory.evidence import Rows, evidence, standing
from planner.time.network import between_nodes, node_link_bytes, operations_share, ring_bytes

if TYPE_CHECKING:  # it imports torch
    from planner.memory.measure import Measured


@dataclass(frozen=True)
class Answer:
    """What was found: candidates, the chosen one, its recipe's path, what else was looked into, and a job's path."""

    found: list[Candidate]
    chosen: Candidate
    path: str | None
    measured: Measured | None = None
    way: PapersWay | None = None
    changes: Changes | None = None
    job: str | None = None


def as_json(cards: Fleet, answer: Answer, rows: Rows) -> str:
    """All of it on one page. `chosen.evidence` says whether it was measured here."""
    card = cards.deciding
    measured, way, changes = answer.measured, answer.way, answer.changes
    fields = {
        "hardware": {
            "gpu": card.name,
            "num_devices": cards.num_devices,
            "num_nodes": cards.num_nodes,
            "unlike_cards": [other.name for other in cards.cards] if cards.unlike else None,
            "marketed_gib": card.marketed_gib,
            "reported_bytes": card.reported_bytes,
            "reported_is_assumed": card.assumed,
            "context_bytes": card.outside_bytes(cards.num_devices),
            "desktop_bytes": card.desktop_bytes,
            "headroom_bytes": card.headroom_bytes,
            "budget_bytes": card.budget_bytes(cards.num_devices),
            "compute_capability": card.compute_capability / 10,
        },
        "candidates": [_fields(candidate, card, rows) for candidate in answer.found],
        "chosen": _fields(answer.chosen, card, rows)
        | ({} if measured is None else {"evidence": "measured", "measured": asdict(measured)}),
        "changes_that_fit": None if changes is None else [change.model_dump() for change in changes.changes],
        "papers_way": None if way is None else way.model_dump(),
        "recipe": answer.path,
        "slurm_job": answer.job,
    }
    return json.dumps(fields, indent=2)


def cpu_json(peak_bytes: int, machine_bytes: int, path: str) -> str:
    """A CPU recipe's memory beside the machine's."""
    fields = {
        "hardware": {"gpu": None, "num_devices": 0, "machine_bytes": machine_bytes},
        "candidates": [],
        "chosen": {"peak_allocated_bytes": peak_bytes, "fits": peak_bytes < machine_bytes, "evidence": "predicted"},
        "recipe": path,
    }
    return json.dumps(fields, indent=2)


def _fields(candidate: Candidate, card: Card, rows: Rows) -> dict[str, Any]:
    recipe, memory = candidate.recipe, candidate.memory
    found = evidence(recipe.encoder.name, card, rows)
    return {
        "encoder": recipe.encoder.name,
        "mixed_precision": recipe.memory.mixed_precision,
        "optimizer": recipe.optimizer.name,
        "activation_checkpointing": recipe.memory.activation_checkpointing,
        "keep_last_micro_batch": recipe.memory.keep_last_micro_batch,
        **memory.model_dump(),
        "peak_reserved_interval_bytes": found.interval(memory.peak_reserved_bytes),
        "interval_origin": found.checked,
        "micro_batch_size": recipe.batch.micro_batch_size,
        "accumulation_steps": recipe.batch.accumulation_steps,
        "global_batch_size": recipe.batch.global_batch_size,
        "negatives_per_query": recipe.negatives_per_query,
        "tiles_per_second_predicted": round(candidate.tiles_per_second, 2),
        "operations_per_step": {part: round(flops) for part, flops in candidate.flops.items()},
        "operations_share": operations_share(candidate),
        "sent_per_step": _sent(candidate),
        "evidence": "predicted",
        "standing": standing(card, rows),
    }


def _sent(candidate: Candidate) -> dict[str, Any] | None:
    """Of each process; None for one alone."""
    if not candidate.sent:
        return None
    return {
        "operations": [sent.model_dump() | {"ring_bytes": round(ring_bytes(sent))} for sent in candidate.sent],
        "meetings": candidate.meetings,
        "seconds_computing_predicted": candidate.seconds_per_step,
        "node_link_bytes": round(node_link_bytes(candidate)),
        "between_nodes_predicted": [asdict(link) for link in between_nodes(candidate)],
    }
