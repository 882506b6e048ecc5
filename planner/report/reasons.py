"""Sentences of the report: why an encoder is chosen, what would make it fit, how accurate the figures are."""

from __future__ import annotations

from importlib.metadata import version

from rich.markup import escape

from moco_accel.recipe.encoder_names import RESNET_NAMES, VIT_NAMES, encoder_family
from moco_accel.recipe.schema import Recipe
from planner.cards.card import GIB, MIB, Card
from planner.cards.lookup import smallest_fitting_card
from planner.evidence.records import Rows, evidence_label, prediction_error
from planner.report.tables import gib, mib
from planner.search.candidate import MIN_EFFICIENT_MICRO_BATCH, Candidate, Change
from planner.time.step_time import UTILISATION

_LARGE_GAP = 4  # ratio of the next possible micro-batch size
_DIVISIBLE_BATCH = 64  # tiles per device; a multiple of it has many divisors
_LISTED_CHANGES = 4


def compare_encoders(candidates: list[Candidate], chosen: Candidate) -> list[str]:
    """Return a line for each encoder that is not chosen."""
    others = [candidate for candidate in candidates if candidate is not chosen]
    lines = [f"[dim]{other.recipe.encoder.name}: {_comparison(other, chosen)}[/]" for other in others]
    return ["", f"Chosen: {chosen.recipe.encoder.name}; --encoder selects another.", *lines] if lines else []


def _comparison(other: Candidate, chosen: Candidate) -> str:
    if not other.memory.fits:
        return f"does not fit with micro-batches of {other.recipe.batch.micro_batch_size}{_smallest_card(other)}"
    ratio = other.tiles_per_second / chosen.tiles_per_second
    speed = f"{ratio:.1f} × as fast" if ratio > 1 else f"{1 / ratio:.1f} × as slow"
    if 0.95 < ratio < 1.05:
        speed = "about as fast"
    if other.recipe.encoder.name in RESNET_NAMES and chosen.recipe.encoder.name in VIT_NAMES:
        return f"fits, {speed}; its BatchNorm normalizes over {other.recipe.batch.micro_batch_size} tiles"
    return f"fits, {speed}; a {'smaller' if ratio >= 1 else 'larger'} encoder"


def _smallest_card(candidate: Candidate) -> str:
    memory, devices = candidate.memory, candidate.recipe.hardware.num_devices
    card = smallest_fitting_card(memory.peak_reserved_bytes, memory.off_share, devices)
    return f"; the smallest card that fits it: {card.name} ({card.marketed_gib:g} GB)" if card else ""


def sharding_note(chosen: Candidate) -> list[str]:
    """Return a line on the cost of sharding; empty if networks are not sharded."""
    hardware = chosen.recipe.hardware
    if not chosen.recipe.memory.fully_shard:
        return []
    per_node, sent = hardware.num_devices // hardware.num_nodes, sum(each.size_bytes for each in chosen.collectives)
    return [
        f"[yellow]memory.fully_shard: nothing fits without it. The {per_node} GPUs of a node shard weights, gradients "
        f"and optimizer state, and exchange {gib(sent)} GiB per step, which tiles/s leaves out. A step that runs out "
        "of memory is not retried.[/]"
    ]


def explain_misfit(candidate: Candidate, changes: list[Change]) -> list[str]:
    """Return what takes the most memory, the fastest changes that make it fit, and the smallest card that fits."""
    memory, name = candidate.memory, candidate.recipe.encoder.name
    inside = {k: size for k, size in memory.breakdown_bytes.items() if k not in ("context", "headroom")}
    largest = sorted(inside, key=lambda category: -inside[category])[:3]
    parts = ", ".join(f"{category.replace('_', ' ')} {gib(inside[category])} GiB" for category in largest)
    lines = [
        f"[bold red]{name} does not fit:[/] {mib(memory.missing_bytes)} MiB are missing with micro-batches of "
        f"{candidate.recipe.batch.micro_batch_size} ({parts}){_smallest_card(candidate)}."
    ]
    for change in changes[:_LISTED_CHANGES]:
        lines.append(
            f"It fits with {change.words}: {change.memory_bytes / GIB:+.1f} GiB, {change.time_share:+.0%} time."
        )
    if not changes:
        lines.append("No change of memory settings makes it fit; a smaller encoder, image size or batch may.")
    return lines


def compare_with_planned(recipe: Recipe, candidate: Candidate) -> list[str]:
    """Return a line if the recipe's own plan predicts another peak, and why."""
    if recipe.planned is None:
        return []
    now, installed = round(candidate.memory.peak_reserved_bytes / MIB), version("torch")
    then, made_with = recipe.planned.peak_reserved_mib, recipe.planned.torch.partition("+")[0]
    if abs(now - then) <= 1:
        return []
    why = f"with torch {made_with}; {installed} is installed" if made_with != installed else "before a change"
    return [f"[yellow]The recipe's own plan predicts {then:,} MiB. It was made {escape(why)}.[/]"]


def micro_batch_warning(candidate: Candidate) -> str | None:
    """Return a warning if the divisors of the per-device batch force a small micro-batch though more may fit."""
    recipe, batch = candidate.recipe, candidate.recipe.batch
    per_device, devices, micro = recipe.per_device_batch_size, recipe.hardware.num_devices, batch.micro_batch_size
    larger = next(size for size in range(micro + 1, per_device + 2) if per_device % size == 0 or size > per_device)
    if not candidate.memory.fits or micro >= MIN_EFFICIENT_MICRO_BATCH or larger < _LARGE_GAP * micro:
        return None
    unit = devices * min(_DIVISIBLE_BATCH, 2 ** (per_device.bit_length() - 1))
    near = max(round(batch.global_batch_size / unit), 1) * unit
    return (
        f"{per_device:,} tiles per device allow micro-batches of {micro}, and next of {larger:,}: a GPU is underused "
        f"with {micro}; --global-batch {near:,} divides better"
    )


def describe_accuracy(candidates: list[Candidate], card: Card, rows: Rows) -> list[str]:
    """Return the evidence behind the figures."""
    names = {encoder_family(name): name for name in (each.recipe.encoder.name for each in candidates)}.values()
    intervals = "; ".join(prediction_error(name, card, rows).source for name in names)
    rates = f"tiles/s assumes {UTILISATION:.0%} of {escape(card.rates_of or card.name)}'s peak throughput"
    lines = [f"[yellow]{escape(evidence_label(card, rows))}[/]; {rates}.", f"[dim]{escape(intervals)}.[/]"]
    if any(name.startswith("resnet") for name in names):
        lines.append("[dim]A ResNet computes BatchNorm statistics per micro-batch; its gradient is exact for those.[/]")
    return lines
