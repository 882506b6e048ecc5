"""Write the plan as JSON for programs. Sizes are bytes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from planner.cards.card import Card
from planner.cards.fleet import Fleet
from planner.evidence.records import Rows, evidence_label, prediction_error
from planner.memory.memory_estimate import MemoryEstimate
from planner.search.candidate import Candidate, Change
from planner.time.step_time import node_link_bytes, node_links, operations_share, ring_bytes

if TYPE_CHECKING:  # it imports torch
    from planner.evidence.measure import Measurement


@dataclass(frozen=True)
class PlanResult:
    """Everything that a plan found; `changes` that make the recipe fit are None if it fits."""

    candidates: list[Candidate]
    chosen: Candidate
    recipe_path: str | None
    measured: Measurement | None = None
    paper_step: MemoryEstimate | None = None
    changes: list[Change] | None = None
    slurm_job: str | None = None


def result_as_json(cards: Fleet, result: PlanResult, rows: Rows) -> str:
    """Return the plan as JSON. `chosen.evidence` is "measured" if it was measured on this machine."""
    measured, paper_step, changes = result.measured, result.paper_step, result.changes
    fields = {
        "hardware": _hardware_fields(cards),
        "candidates": [_candidate_fields(candidate, cards.limiting, rows) for candidate in result.candidates],
        "chosen": _candidate_fields(result.chosen, cards.limiting, rows)
        | ({} if measured is None else {"evidence": "measured", "measured": asdict(measured)}),
        "changes_that_fit": None if changes is None else [change.model_dump() for change in changes],
        "papers_way": paper_step and paper_step.model_dump(include={"peak_reserved_bytes", "breakdown_bytes"}),
        "recipe": result.recipe_path,
        "slurm_job": result.slurm_job,
    }
    return json.dumps(fields, indent=2)


def _hardware_fields(cards: Fleet) -> dict[str, Any]:
    card = cards.limiting
    return {
        "gpu": card.name,
        "num_devices": cards.num_devices,
        "num_nodes": cards.num_nodes,
        "unlike_cards": [each.name for each in cards.cards] if cards.is_mixed else None,
        "marketed_gib": card.marketed_gib,
        "reported_bytes": card.reported_bytes,
        "reported_is_assumed": card.assumed,
        "context_bytes": card.outside_bytes(cards.num_devices),
        "desktop_bytes": card.desktop_bytes,
        "headroom_bytes": card.headroom_bytes,
        "budget_bytes": card.budget_bytes(cards.num_devices),
        "compute_capability": card.compute_capability / 10,
    }


def _candidate_fields(candidate: Candidate, card: Card, rows: Rows) -> dict[str, Any]:
    recipe, memory = candidate.recipe, candidate.memory
    error = prediction_error(recipe.encoder.name, card, rows)
    return {
        "encoder": recipe.encoder.name,
        "mixed_precision": recipe.memory.mixed_precision,
        "optimizer": recipe.optimizer.name,
        "activation_checkpointing": recipe.memory.activation_checkpointing,
        "keep_last_micro_batch": recipe.memory.keep_last_micro_batch,
        **memory.model_dump(),
        "peak_reserved_interval_bytes": error.interval(memory.peak_reserved_bytes),
        "interval_origin": error.source,
        "micro_batch_size": recipe.batch.micro_batch_size,
        "accumulation_steps": recipe.batch.accumulation_steps,
        "global_batch_size": recipe.batch.global_batch_size,
        "negatives_per_query": recipe.negatives_per_query,
        "tiles_per_second_predicted": round(candidate.tiles_per_second, 2),
        "operations_per_step": {part: round(flops) for part, flops in candidate.flops.items()},
        "operations_share": operations_share(candidate.flops),
        "sent_per_step": _communication_fields(candidate),
        "evidence": "predicted",
        "standing": evidence_label(card, rows),
    }


def _communication_fields(candidate: Candidate) -> dict[str, Any] | None:
    """Per process; None for a single process."""
    if not candidate.collectives:
        return None
    hardware, collectives, seconds = candidate.recipe.hardware, candidate.collectives, candidate.computing_seconds
    return {
        "operations": [each.model_dump() | {"ring_bytes": round(ring_bytes(each))} for each in collectives],
        "meetings": candidate.status_exchanges,
        "seconds_computing_predicted": seconds,
        "node_link_bytes": round(node_link_bytes(hardware, collectives)),
        "between_nodes_predicted": [asdict(link) for link in node_links(hardware, collectives, seconds)],
    }
