"""The planner's answer for people: rich, on stderr, and kept as a picture if they ask for one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from moco_accel.common.console import console
from moco_accel.common.errors import UserError
from moco_accel.recipe.schema import Recipe
from planner.cards.devices import GIB, MIB, spills_to_system_memory
from planner.cards.fleet import Fleet
from planner.memory.candidate import Candidate, PapersWay

if TYPE_CHECKING:  # it imports torch
    from planner.memory.measure import Measured

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
_WIDTH = 110  # columns of a saved report
_PICTURES = (".svg", ".html", ".txt")


class Page:
    """Shows parts of a report as they come, and remembers them for `save`."""

    def __init__(self) -> None:
        self._parts: list[RenderableType] = []

    def show(self, *parts: RenderableType) -> None:
        self._parts += parts
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str))

    def save(self, path: Path) -> None:
        """As SVG, HTML or text, by the path's ending."""
        recording = Console(record=True, file=io.StringIO(), width=_WIDTH, highlight=False)
        for part in self._parts:
            recording.print(part)
        if path.suffix == ".svg":
            recording.save_svg(str(path), title="moco-plan")
        elif path.suffix == ".html":
            recording.save_html(str(path))
        else:
            recording.save_text(str(path))


def check_picture(path: Path | None) -> None:
    """Raises UserError for a path that `Page.save` cannot write, or whose ending it doesn't know."""
    if path is None:
        return
    if path.suffix not in _PICTURES:
        raise UserError(f"--save={path} must end in {', '.join(_PICTURES)}; --save plan.svg works")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f"--save={path} cannot be written: {error}; --save plan.svg works") from None


def hardware(cards: Fleet) -> RenderableType:
    """Usable memory, from the marketed figure downward."""
    card, count = cards.deciding, cards.num_devices
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right", no_wrap=True)
    sold = int(card.marketed_gib * GIB)
    nodes = f"{cards.num_nodes} nodes × " if cards.num_nodes > 1 else ""
    names = (
        f"{nodes}{len(cards.cards)} × {card.name}"
        if not cards.unlike
        else " + ".join(other.name for other in cards.cards)
    )
    desktop = "a desktop on the card" if card.taken_bytes is None else "taken by others now"
    rows = [
        (f"{names}, sold with" if not cards.unlike else f"{names}: the smallest is sold with", sold),
        ("not reported as memory" + (" (assumed)" if card.assumed else ""), card.reported_bytes - sold),
        ("CUDA context" + (" and NCCL" if count > 1 else ""), -card.outside_bytes(count)),
        (desktop, -card.desktop_bytes),
        ("headroom, 5 %", -card.headroom_bytes),
        ("for the allocator, each", card.budget_bytes(count)),
    ]
    for label, size in rows:
        if size:
            table.add_row(escape(label), f"{mib(size)} MiB", style="bold" if label.startswith("for the") else None)
    notes = [cards.note, card.needs]
    if spills_to_system_memory():
        notes.append("under Windows and WSL a full card spills into system memory, slowly, where Linux would fail")
    return Group(table, *(f"[yellow]{escape(note)}[/]" for note in notes if note))


def asked_for(recipe: Recipe) -> str:
    """What every row has in common."""
    devices, precision = recipe.hardware.num_devices, recipe.memory.mixed_precision
    return (
        f"global batch {recipe.batch.global_batch_size:,} = micro-batch × accumulation × {devices} "
        f"GPU{'s' if devices > 1 else ''}; {recipe.negatives_per_query:,} negatives per query\n"
        f"{recipe.encoder.image_size} pixels, {recipe.encoder.bands} bands, "
        f"{'fp32' if precision == 'no' else precision}, {recipe.optimizer.name}, lr {recipe.optimizer.lr:g}"
    )


def candidates_table(candidates: list[Candidate], tiles: int | None, waiting: str | None = None) -> Table:
    """A row per encoder; `waiting` names the one being traced."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for name, justify in (
        ("encoder", "left"),
        ("micro-batch ×\naccum. × GPUs", "right"),
        ("recompute,\ndivide", "left"),
        ("peak MiB,\npredicted", "right"),
        ("fits: MiB\nfree", "right"),
        ("tiles/s\npred.", "right"),
        ("days\npred." if tiles else "hours per\nmillion", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for candidate in candidates:
        table.add_row(*_row(candidate, tiles))
    if waiting is not None:
        table.add_row(f"[dim]{waiting} …[/]")
    return table


def _row(candidate: Candidate, tiles: int | None) -> list[str]:
    recipe, memory, batch = candidate.recipe, candidate.memory, candidate.recipe.batch
    tiles_per_unit = tiles * recipe.schedule.epochs / 24 if tiles else 1_000_000  # hours of the first are days
    units = tiles_per_unit / candidate.tiles_per_second / 3600
    off = round(memory.peak_reserved_bytes * memory.off_share)
    return [
        recipe.encoder.name,
        f"{batch.micro_batch_size:,} × {batch.accumulation_steps:,} × {recipe.hardware.num_devices}",
        _recomputed(recipe),
        f"{mib(memory.peak_reserved_bytes)} ± {mib(off)}",
        f"[green]yes: {mib(memory.headroom_bytes)}[/]" if memory.fits else f"[red]no: −{mib(memory.missing_bytes)}[/]",
        f"{candidate.tiles_per_second:,.0f}" if memory.fits else "–",
        (f"{units:,.1f}" if units >= 1 else f"{units:.2g}") if memory.fits else "–",
    ]


def _recomputed(recipe: Recipe) -> str:
    hardware, words = recipe.hardware, "blocks" if recipe.memory.activation_checkpointing else "–"
    return f"{words}, ÷ {hardware.num_devices // hardware.num_nodes}" if recipe.memory.fully_shard else words


def budget(candidate: Candidate) -> list[RenderableType]:
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
    title = f"[bold]{candidate.recipe.encoder.name}[/] at its peak, MiB on each card"
    return [title, bar, legend, f"The peak is in {candidate.memory.peak_operation}."]


def papers_way(chosen: Candidate, way: PapersWay) -> str:
    """The paper's own step beside ours."""
    inside = {name: size for name, size in way.breakdown_bytes.items() if name not in ("context", "headroom")}
    name, size = max(inside.items(), key=lambda item: item[1])
    per_device = chosen.recipe.per_device_batch_size
    return (
        f"The paper's own way, both views of {per_device:,} tiles at once, would take "
        f"{gib(way.peak_reserved_bytes)} GiB on each card, {gib(size)} of them {name.replace('_', ' ')}."
    )


def beside_measured(candidate: Candidate, measured: Measured) -> RenderableType:
    """Predicted beside measured, of one card."""
    memory, table = candidate.memory, Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(f"on {escape(measured.gpu)}")
    for name in ("predicted", "measured", "predicted / measured − 1"):
        table.add_column(name, justify="right")
    pairs = [
        ("peak reserved, MiB", memory.peak_reserved_bytes / MIB, measured.peak_reserved_bytes / MIB),
        ("peak allocated, MiB", memory.peak_allocated_bytes / MIB, measured.peak_allocated_bytes / MIB),
        ("used on the card, MiB", memory.device_used_bytes / MIB, measured.device_used_bytes / MIB),
        ("tiles/s", candidate.tiles_per_second, measured.tiles_per_second),
    ]
    for name, predicted, found in pairs:
        table.add_row(name, f"{predicted:,.0f}", f"{found:,.0f}", f"{predicted / found - 1:+.1%}")
    return table


def mib(size: int) -> str:
    return f"{round(size / MIB):,}"


def gib(size: int) -> str:
    return f"{size / GIB:,.1f}"
