"""`moco-plan --list-gpus`: the cards that are known by name."""

from __future__ import annotations

import json

from rich import box
from rich.table import Table

from moco_accel.common.console import console
from planner.cards.devices import list_cards_table

_COLUMNS = ("name", "product", "gib_sold", "gib_reported", "reported_is_assumed", "compute_capability", "precision",
            "tensor_tflops", "gb_per_second")  # fmt: skip


def show_cards(as_json: bool) -> None:
    """A table, or JSON on stdout."""
    rows = list_cards_table()
    if as_json:
        print(json.dumps([dict(zip(_COLUMNS, row, strict=True)) for row in rows], indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("--gpu", "sold\nGB", "has\nGiB", "com-\npute", "", "16-bit\nTFLOPS", "GB/s"):
        table.add_column(heading, justify="left" if heading in ("--gpu", "") else "right", no_wrap=True)
    table.add_column("product", overflow="ellipsis", no_wrap=True, max_width=22)
    for name, product, sold, reported, assumed, capability, precision, tflops, rate in rows:
        figure = f"{'~' if assumed else ''}{reported:.1f}"
        product = product.removeprefix("NVIDIA ").removeprefix("GeForce ")
        table.add_row(name, f"{sold:g}", figure, f"{capability:.1f}", precision, f"{tflops:.0f}", f"{rate:g}", product)
    console.print(table)
    console.print("~ assumed: no report of that card's figure was found. Any other NVIDIA card: --vram and its GB.")
