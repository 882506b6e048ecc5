"""The sentences of a report: why one and not the others, what would fit, how sure all of it is."""

from __future__ import annotations

from importlib.metadata import version

from rich.markup import escape

from moco_accel.recipe.constants import RESNET_NAMES, VIT_NAMES, family
from moco_accel.recipe.schema import Recipe
from planner.answer.report import gib, mib
from planner.cards.devices import GIB, MIB, UTILISATION, Card, smallest_card_with
from planner.memory.candidate import FEW_TILES, Candidate, Changes
from planner.memory.evidence import Rows, evidence, standing

_COARSE = 4  # from one divisor to the next
_WELL_DIVIDED = 64  # tiles per device
_LISTED_CHANGES = 4


def why_not(found: list[Candidate], chosen: Candidate) -> list[str]:
    """A line for each encoder that was not chosen."""
    others = [candidate for candidate in found if candidate is not chosen]
    lines = [f"[dim]{other.recipe.encoder.name}: {_reason(other, chosen)}[/]" for other in others]
    return ["", f"Chosen: {chosen.recipe.encoder.name}; --encoder takes another.", *lines] if lines else []


def _reason(other: Candidate, chosen: Candidate) -> str:
    if not other.memory.fits:
        return f"does not fit in micro-batches of {other.recipe.batch.micro_batch_size}{_smallest_card(other)}"
    ratio = other.tiles_per_second / chosen.tiles_per_second
    pace = f"{ratio:.1f} × as fast" if ratio > 1 else f"{1 / ratio:.1f} × as slow"
    if 0.95 < ratio < 1.05:
        pace = "about as fast"
    if other.recipe.encoder.name in RESNET_NAMES and chosen.recipe.encoder.name in VIT_NAMES:
        return f"fits, {pace}; its BatchNorm sees {other.recipe.batch.micro_batch_size} tiles at a time"
    return f"fits, {pace}; a {'smaller' if ratio >= 1 else 'larger'} encoder"


def _smallest_card(candidate: Candidate) -> str:
    memory = candidate.memory
    would = smallest_card_with(memory.peak_reserved_bytes, memory.off_share, candidate.recipe.hardware.num_devices)
    return f"; the smallest card that would do: {would.name} ({would.marketed_gib:g} GB)" if would else ""


def divided(chosen: Candidate) -> list[str]:
    """What it means that networks are divided; nothing where they are not."""
    hardware = chosen.recipe.hardware
    if not chosen.recipe.memory.fully_shard:
        return []
    per_node, sent = hardware.num_devices // hardware.num_nodes, sum(item.size_bytes for item in chosen.sent)
    return [
        f"[yellow]memory.fully_shard: the {per_node} GPUs of a node divide weights, gradients and optimizer state, for "
        f"nothing fits without. They send each other {gib(sent)} GiB a step, which tiles/s leaves out, and a step that "
        "runs out of memory is not done over.[/]"
    ]


def does_not_fit(candidate: Candidate, changes: Changes) -> list[str]:
    """What is too big, what would make it fit, the cheapest first, and the smallest card that would do."""
    memory, name = candidate.memory, candidate.recipe.encoder.name
    inside = {k: size for k, size in memory.breakdown_bytes.items() if k not in ("context", "headroom")}
    largest = sorted(inside, key=lambda category: -inside[category])[:3]
    parts = ", ".join(f"{category.replace('_', ' ')} {gib(inside[category])} GiB" for category in largest)
    lines = [
        f"[bold red]{name} does not fit:[/] {mib(memory.missing_bytes)} MiB are missing in micro-batches of "
        f"{candidate.recipe.batch.micro_batch_size} ({parts}){_smallest_card(candidate)}."
    ]
    for change in changes.changes[:_LISTED_CHANGES]:
        lines.append(
            f"It fits with {change.words}: {change.memory_bytes / GIB:+.1f} GiB, {change.time_share:+.0%} time."
        )
    if not changes.changes:
        lines.append("No change of memory settings makes it fit; a smaller encoder, image size or batch may.")
    return lines


def beside_plan(recipe: Recipe, candidate: Candidate) -> list[str]:
    """What the recipe's own plan said, where another version made it or something changed since."""
    if recipe.planned is None:
        return []
    now, installed = round(candidate.memory.peak_reserved_bytes / MIB), version("torch")
    then, made_with = recipe.planned.peak_reserved_mib, recipe.planned.torch.partition("+")[0]
    if abs(now - then) <= 1:
        return []
    why = f"with torch {made_with}; here is {installed}" if made_with != installed else "before something was changed"
    return [f"[yellow]The recipe's own plan says {then:,} MiB: it was made {escape(why)}.[/]"]


def coarse(candidate: Candidate) -> str | None:
    """A warning where the per-device batch divides so badly that a GPU has few tiles at once, though more may fit."""
    recipe, batch = candidate.recipe, candidate.recipe.batch
    per_device, devices = recipe.per_device_batch_size, recipe.hardware.num_devices
    larger = next(
        size
        for size in range(batch.micro_batch_size + 1, per_device + 2)
        if per_device % size == 0 or size > per_device
    )
    if not candidate.memory.fits or batch.micro_batch_size >= FEW_TILES or larger < _COARSE * batch.micro_batch_size:
        return None
    unit = devices * min(_WELL_DIVIDED, 2 ** (per_device.bit_length() - 1))
    near = max(round(batch.global_batch_size / unit), 1) * unit
    return (
        f"{per_device:,} tiles per device divide into micro-batches of {batch.micro_batch_size}, next of {larger:,}: "
        f"a GPU idles at so few; --global-batch {near:,} divides better"
    )


def how_sure(found: list[Candidate], card: Card, rows: Rows) -> list[str]:
    """Where the figures come from."""
    encoders = {family(candidate.recipe.encoder.name): candidate.recipe.encoder.name for candidate in found}
    intervals = "; ".join(evidence(name, card, rows).checked for name in encoders.values())
    rates = f"tiles/s at {UTILISATION:.0%} of {escape(card.rates_of or card.name)}'s peak"
    lines = [f"[yellow]{escape(standing(card, rows))}[/]; {rates}.", f"[dim]{escape(intervals)}.[/]"]
    if any(name.startswith("resnet") for name in encoders.values()):
        lines.append(
            "[dim]A ResNet's BatchNorm takes its statistics from each micro-batch; its gradient is exact for that.[/]"
        )
    return lines
