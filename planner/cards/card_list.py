"""`moco-plan --list-gpus`: list the cards that are known by name."""

from __future__ import annotations

import json

from rich import box
from rich.table import Table

from moco_accel.common.console import console
from planner.cards.card import GIB
from planner.cards.lookup import CARDS


def show_cards(as_json: bool) -> None:
    """Print the known cards as a table, or as JSON on stdout."""
    if as_json:
        print(json.dumps([_card_fields(name) for name in CARDS], indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("--gpu", "sold\nGB", "has\nGiB", "com-\npute", "", "16-bit\nTFLOPS", "GB/s"):
        table.add_column(heading, justify="left" if heading in ("--gpu", "") else "right", no_wrap=True)
    table.add_column("product", overflow="ellipsis", no_wrap=True, max_width=22)
    for card in CARDS.values():
        reported = f"{'~' if card.assumed else ''}{card.reported_bytes / GIB:.1f}"
        product = (card.product or "").removeprefix("NVIDIA ").removeprefix("GeForce ")
        table.add_row(
            card.name, f"{card.marketed_gib:g}", reported, f"{card.compute_capability / 10:.1f}", card.precision,
            f"{card.tensor_tflops:.0f}", f"{card.bandwidth_gb_per_second:g}", product,
        )  # fmt: skip
    console.print(table)
    console.print("~ assumed: no published figure was found. For any other NVIDIA card, use --vram with its GB.")


def _card_fields(name: str) -> dict[str, object]:
    card = CARDS[name]
    return {
        "name": name,
        "product": card.product,
        "gib_sold": card.marketed_gib,
        "gib_reported": card.reported_bytes / GIB,
        "reported_is_assumed": card.assumed,
        "compute_capability": card.compute_capability / 10,
        "precision": card.precision,
        "tensor_tflops": card.tensor_tflops,
        "gb_per_second": card.bandwidth_gb_per_second,
    }
