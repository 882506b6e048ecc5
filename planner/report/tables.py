"""Tables of the report: usable memory, candidates, the memory budget, a step's operations and communication."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from moco_accel.recipe.schema import Recipe
from planner.cards.card import GIB, MIB
from planner.cards.fleet import Fleet, falls_back_to_system_memory
from planner.memory.memory_estimate import MemoryEstimate
from planner.search.candidate import Candidate
from planner.time.step_time import node_links, operations_share, ring_bytes

if TYPE_CHECKING:  # it imports torch
    from planner.evidence.measure import Measurement

_COLOURS = {
    "weights": "blue",
    "momentum_weights": "cyan",
    "gradients": "magenta",
    "optimizer_state": "yellow",
    "activations": "green",
    "heads": "bright_blue",
    "inputs": "bright_cyan",
    "temporaries": "bright_magenta",
    "workspaces": "bright_yellow",
    "fragmentation": "red",
    "context": "white",
    "headroom": "bright_black",
}
_BAR_CELLS = 60
_LABELS = {
    "keys": "gathered keys",
    "batch_norm": "BatchNorm statistics",
    "gradients": "gradients",
    "parameters": "gathered parameters",
}
_PARTS = ("encoder", "momentum_encoder", "heads", "loss")


def hardware_table(cards: Fleet) -> RenderableType:
    """Return the memory of the limiting card, from the marketed figure down to the allocator's budget."""
    card, count = cards.limiting, cards.num_devices
    columns = Column(style="dim"), Column(justify="right", no_wrap=True)
    table = Table(*columns, box=None, show_header=False, pad_edge=False)
    marketed = int(card.marketed_gib * GIB)
    rows = [
        (f"{_card_names(cards)}, marketed memory{' of the smallest' if cards.is_mixed else ''}", marketed),
        ("not reported by CUDA" + (" (assumed)" if card.assumed else ""), card.reported_bytes - marketed),
        ("CUDA context" + (" and NCCL" if count > 1 else ""), -card.outside_bytes(count)),
        ("desktop on the card" if card.used_bytes is None else "used by other processes now", -card.desktop_bytes),
        ("headroom, 5 %", -card.headroom_bytes),
        ("for the allocator, per card", card.budget_bytes(count)),
    ]
    for label, size in rows:
        if size:
            table.add_row(escape(label), f"{mib(size)} MiB", style="bold" if label.startswith("for the") else None)
    notes = [cards.note, card.requirement and f"{card.name} {card.requirement}"]
    if falls_back_to_system_memory():
        notes.append("Windows and WSL use system memory when a card is full: training slows down instead of failing")
    return Group(table, *(f"[yellow]{escape(note)}[/]" for note in notes if note))


def _card_names(cards: Fleet) -> str:
    if cards.is_mixed:
        return " + ".join(card.name for card in cards.cards)
    nodes = f"{cards.num_nodes} nodes × " if cards.num_nodes > 1 else ""
    return f"{nodes}{len(cards.cards)} × {cards.limiting.name}"


def training_summary(recipe: Recipe) -> str:
    """Return the settings that all rows of the candidates table share."""
    devices, precision = recipe.hardware.num_devices, recipe.memory.mixed_precision
    return (
        f"global batch {recipe.batch.global_batch_size:,} = micro-batch × accumulation × {devices} "
        f"GPU{'s' if devices > 1 else ''}; {recipe.negatives_per_query:,} negatives per query\n"
        f"{recipe.encoder.image_size} pixels, {recipe.encoder.bands} bands, "
        f"{'fp32' if precision == 'no' else precision}, {recipe.optimizer.name}, lr {recipe.optimizer.lr:g}"
    )


def candidates_table(candidates: list[Candidate], tiles: int | None, pending: str | None = None) -> Table:
    """Return a table with a row per candidate, and one for the encoder that is `pending`.

    The last column has days for a data set of `tiles`, or hours per million tiles for None.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for name, justify in (
        ("encoder", "left"),
        ("micro-batch ×\naccum. × GPUs", "right"),
        ("recompute,\nshard", "left"),
        ("peak MiB,\npredicted", "right"),
        ("fits: MiB\nfree", "right"),
        ("tiles/s\npred.", "right"),
        ("days\npred." if tiles else "hours per\nmillion", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for candidate in candidates:
        table.add_row(*_candidate_cells(candidate, tiles))
    if pending is not None:
        table.add_row(f"[dim]{pending} …[/]")
    return table


def _candidate_cells(candidate: Candidate, tiles: int | None) -> list[str]:
    recipe, memory, batch = candidate.recipe, candidate.memory, candidate.recipe.batch
    # hours per million tiles, or days for all epochs
    tiles_per_unit = tiles * recipe.schedule.epochs / 24 if tiles else 1_000_000
    units = tiles_per_unit / candidate.tiles_per_second / 3600
    error = round(memory.peak_reserved_bytes * memory.off_share)
    return [
        recipe.encoder.name,
        f"{batch.micro_batch_size:,} × {batch.accumulation_steps:,} × {recipe.hardware.num_devices}",
        _recomputation_and_sharding(recipe),
        f"{mib(memory.peak_reserved_bytes)} ± {mib(error)}",
        f"[green]yes: {mib(memory.headroom_bytes)}[/]" if memory.fits else f"[red]no: −{mib(memory.missing_bytes)}[/]",
        f"{candidate.tiles_per_second:,.0f}" if memory.fits else "–",
        (f"{units:,.1f}" if units >= 1 else f"{units:.2g}") if memory.fits else "–",
    ]


def _recomputation_and_sharding(recipe: Recipe) -> str:
    hardware, cell = recipe.hardware, "blocks" if recipe.memory.activation_checkpointing else "–"
    return f"{cell}, ÷ {hardware.num_devices // hardware.num_nodes}" if recipe.memory.fully_shard else cell


def memory_budget(candidate: Candidate) -> list[RenderableType]:
    """Return the memory of a candidate at its peak: a bar, and MiB by category."""
    breakdown = {name: size for name, size in candidate.memory.breakdown_bytes.items() if size > 0}
    total = sum(breakdown.values())
    bar, legend = Text(), Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        legend.add_column(no_wrap=True)
        legend.add_column(justify="right", no_wrap=True)
    cells, filled = [], 0.0
    for name, size in breakdown.items():
        start, filled = round(filled), filled + _BAR_CELLS * size / total
        bar.append("█" * (round(filled) - start), style=_COLOURS[name])
        cells += [f"[{_COLOURS[name]}]█[/] {name.replace('_', ' ')}", mib(size)]
    for start in range(0, len(cells), 6):
        legend.add_row(*cells[start : start + 6])
    title = f"[bold]{candidate.recipe.encoder.name}[/] at its peak, MiB per card"
    return [title, bar, legend, f"The peak occurs in {candidate.memory.peak_operation}."]


def paper_step_comparison(chosen: Candidate, paper: MemoryEstimate) -> str:
    """Return a sentence on the memory of the paper's step."""
    inside = {name: size for name, size in paper.breakdown_bytes.items() if name not in ("context", "headroom")}
    name, size = max(inside.items(), key=lambda item: item[1])
    return (
        f"The paper's step, both views of {chosen.recipe.per_device_batch_size:,} tiles at once, would take "
        f"{gib(paper.peak_reserved_bytes)} GiB per card, of which {gib(size)} GiB are {name.replace('_', ' ')}."
    )


def describe_operations(candidate: Candidate) -> str:
    """Return the share of each part in a step's operations; heads and loss run on the per-device batch at once."""
    shares = operations_share(candidate.flops)
    parts = ", ".join(f"{part.replace('_', ' ')} {shares.get(part, 0):.1%}" for part in _PARTS)
    return f"Counted operations of a step, per card: {parts}."


def communication_report(candidate: Candidate) -> list[RenderableType]:
    """Return a table of a step's collectives and, for several nodes, their time; empty for one process."""
    if not candidate.collectives:
        return []
    table = _new_table("communication per step", "operation", right=("GPUs", "times", "MiB", "sent per GPU, MiB"))
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
    table = _new_table(right=("between nodes", "seconds sending", "share of a step"))
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


def measurement_table(candidate: Candidate, measured: Measurement) -> RenderableType:
    """Return predicted and measured figures of one card."""
    memory, right = candidate.memory, ("predicted", "measured", "predicted / measured − 1")
    table = _new_table(f"on {escape(measured.gpu)}", right=right)
    pairs = [
        ("peak reserved, MiB", memory.peak_reserved_bytes / MIB, measured.peak_reserved_bytes / MIB),
        ("peak allocated, MiB", memory.peak_allocated_bytes / MIB, measured.peak_allocated_bytes / MIB),
        ("used on the card, MiB", memory.device_used_bytes / MIB, measured.device_used_bytes / MIB),
        ("tiles/s", candidate.tiles_per_second, measured.tiles_per_second),
    ]
    for name, predicted, found in pairs:
        table.add_row(name, f"{predicted:,.0f}", f"{found:,.0f}", f"{predicted / found - 1:+.1%}")
    return table


def _new_table(*left: str, right: Sequence[str]) -> Table:
    columns = *map(Column, left), *(Column(name, justify="right") for name in right)
    return Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


def mib(size: int) -> str:
    """Format bytes as whole MiB."""
    return f"{round(size / MIB):,}"


def gib(size: int) -> str:
    """Format bytes as GiB with one decimal."""
    return f"{size / GIB:,.1f}"
