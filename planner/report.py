"""The planner's answer, for people (rich, on stderr) and for programs (JSON, on stdout)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moco_accel.recipe import Recipe
from planner.allocator import MIB
from planner.devices import DESKTOP_BYTES, GIB, UTILISATION, Card

if TYPE_CHECKING:  # the search imports torch, and hardware is printed before that
    from planner.search import Candidate

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
EVIDENCE = "predicted, not yet measured on this kind of card"


def hardware(card: Card, num_devices: int) -> RenderableType:
    """Usable memory, from the marketed figure downward."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    sold = int(card.marketed_gib * GIB)
    rows = [
        (f"{num_devices} × {card.name}, sold with", sold),
        ("not reported as memory", card.reported_bytes - sold),
        ("CUDA context" + (" and NCCL" if num_devices > 1 else ""), -card.outside_bytes(num_devices)),
        ("a desktop on the card", -DESKTOP_BYTES),
        ("headroom, 5 %", -card.headroom_bytes),
        ("for the allocator, each", card.budget_bytes(num_devices)),
    ]
    for label, size in rows:
        table.add_row(label, f"{mib(size)} MiB", style="bold" if label.startswith("for the") else None)
    return table


def candidates_table(candidates: list[Candidate], tiles: int | None, waiting: str | None = None) -> Table:
    """A row per encoder; `waiting` names the one being traced."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for name, justify in (
        ("encoder", "left"),
        ("recom-\npute", "left"),
        ("micro-\nbatch", "right"),
        ("accumu-\nlation", "right"),
        ("peak\nMiB", "right"),
        ("fits", "left"),
        ("tiles/s\npredicted", "right"),
        ("days\npredicted" if tiles else "hours per\nmillion", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for candidate in candidates:
        table.add_row(*_row(candidate, tiles))
    if waiting is not None:
        table.add_row(f"[dim]{waiting} …[/]")
    return table


def asked_for(recipe: Recipe) -> str:
    """What every row has in common."""
    devices = recipe.hardware.num_devices
    return (
        f"global batch {recipe.batch.global_batch_size:,} = micro-batch × accumulation × {devices} "
        f"GPU{'s' if devices > 1 else ''}; {recipe.negatives_per_query:,} negatives per query\n"
        f"{recipe.encoder.image_size} pixels, {recipe.encoder.bands} bands, {recipe.memory.mixed_precision}, "
        f"{recipe.optimizer.name}, lr {recipe.optimizer.lr:g}"
    )


def budget_bar(candidate: Candidate) -> RenderableType:
    """The chosen recipe's memory at its peak: a bar, and MiB per category."""
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
    return Group(bar, legend)


def outcome(candidate: Candidate, card: Card, path: str | None, command: str | None, checked: float | None) -> str:
    """What follows from the plan, in a few lines."""
    recipe, memory = candidate.recipe, candidate.memory
    lines = [f"The peak is in {memory.peak_operation}."]
    if memory.fits:
        lines[0] += f" {mib(memory.headroom_bytes)} MiB stay free on each card."
    else:
        lines[0] += f" [bold red]{recipe.encoder.name} does not fit:[/] {mib(memory.missing_bytes)} MiB are missing."
    if checked is not None:
        lines.append(f"Traced again at this micro-batch size: {checked:+.1%} from the table's figure.")
    if recipe.encoder.name.startswith("resnet") and recipe.batch.accumulation_steps > 1:
        lines.append("A ResNet's BatchNorm takes its statistics from each micro-batch; its gradient is exact for that.")
    lines.append(f"[yellow]{EVIDENCE}[/]; tiles/s at {UTILISATION:.0%} of {card.rates_of or card.name}'s peak.")
    if path is not None:
        lines.append(f"Recipe: [bold]{path}[/]")
    if command is not None:
        lines.append(f"[bold green]{command}[/]")
    return "\n".join(lines)


def as_json(card: Card, num_devices: int, candidates: list[Candidate], chosen: Candidate, path: str | None) -> str:
    """Everything the report says, for programs. Sizes are bytes."""
    return json.dumps(
        {
            "hardware": {
                "gpu": card.name,
                "num_devices": num_devices,
                "marketed_gib": card.marketed_gib,
                "reported_bytes": card.reported_bytes,
                "budget_bytes": card.budget_bytes(num_devices),
                "compute_capability": card.compute_capability / 10,
            },
            "candidates": [_fields(candidate) for candidate in candidates],
            "chosen": _fields(chosen),
            "recipe": path,
        },
        indent=2,
    )


def cpu_json(peak_bytes: int, machine_bytes: int, path: str) -> str:
    """A CPU recipe's memory beside the machine's."""
    fields = {
        "hardware": {"gpu": None, "num_devices": 0, "machine_bytes": machine_bytes},
        "candidates": [],
        "chosen": {"peak_allocated_bytes": peak_bytes, "fits": peak_bytes < machine_bytes, "evidence": "predicted"},
        "recipe": path,
    }
    return json.dumps(fields, indent=2)


def mib(size: int) -> str:
    return f"{round(size / MIB):,}"


def _row(candidate: Candidate, tiles: int | None) -> list[str]:
    recipe, memory = candidate.recipe, candidate.memory
    tiles_per_unit = tiles * recipe.schedule.epochs / 24 if tiles else 1_000_000  # hours of the first are days
    return [
        recipe.encoder.name,
        "blocks" if recipe.memory.activation_checkpointing else "–",
        f"{recipe.batch.micro_batch_size:,}",
        f"{recipe.batch.accumulation_steps:,}",
        mib(memory.peak_reserved_bytes),
        "[green]yes[/]" if memory.fits else f"[red]no, by {mib(memory.missing_bytes)}[/]",
        f"{candidate.tiles_per_second:,.0f}" if memory.fits else "–",
        f"{tiles_per_unit / candidate.tiles_per_second / 3600:,.1f}" if memory.fits else "–",
    ]


def _fields(candidate: Candidate) -> dict[str, Any]:
    recipe, memory = candidate.recipe, candidate.memory
    return {
        "encoder": recipe.encoder.name,
        "mixed_precision": recipe.memory.mixed_precision,
        "activation_checkpointing": recipe.memory.activation_checkpointing,
        "peak_reserved_bytes": memory.peak_reserved_bytes,
        "peak_allocated_bytes": memory.peak_allocated_bytes,
        "device_used_bytes": memory.device_used_bytes,
        "breakdown_bytes": memory.breakdown_bytes,
        "peak_operation": memory.peak_operation,
        "fits": memory.fits,
        "headroom_bytes": memory.headroom_bytes,
        "missing_bytes": memory.missing_bytes,
        "micro_batch_size": recipe.batch.micro_batch_size,
        "accumulation_steps": recipe.batch.accumulation_steps,
        "global_batch_size": recipe.batch.global_batch_size,
        "negatives_per_query": recipe.negatives_per_query,
        "tiles_per_second_predicted": round(candidate.tiles_per_second, 2),
        "evidence": "predicted",
    }
