"""What running heads and loss on the whole batch costs, as batch and processes grow: share of counted operations.

Nothing is measured: operations and bytes are counted in the trainer's own step on fake tensors, as moco-plan counts
them, on a card that computes in bf16. No micro-batch is recomputed, which makes the shares as large as they can be.
Memory is that of micro-batches of 32 tiles of 224 pixels: there the encoder takes little, and the loss shows.

    python benchmarks/heads.py > benchmarks/results/heads.jsonl
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from moco_accel.recipe.constants import ENCODER_NAMES
from moco_accel.recipe.schema import Recipe
from planner.answer.request import Request, recipe_for
from planner.cards.devices import CARDS, MIB
from planner.memory.candidate import with_memory, with_micro_batch
from planner.memory.estimate import judge
from planner.time.network import operations_share

SCALES = ((4096, 2), (32_768, 64), (1_048_576, 1024))
PROMISED = {(4096, 2): 0.05, (32_768, 64): 0.10}
CARD = CARDS["h100_sxm"]
FEW, LARGE = 32, 224
console = Console(stderr=True)


def recipe_at(encoder: str, image_size: int, global_batch_size: int, processes: int) -> Recipe:
    """In one micro-batch per process."""
    request = Request(
        gpus=processes,
        encoder=encoder,
        image_size=image_size,
        global_batch_size=global_batch_size,
        vram_gib=CARD.marketed_gib,
        mixed_precision="bf16",
    )
    return recipe_for(request, encoder)


def row(encoder: str, image_size: int, global_batch_size: int, processes: int) -> dict[str, Any]:
    """Counted operations of a process's step by part, heads' and loss's share, and bytes at the peak."""
    whole = recipe_at(encoder, image_size, global_batch_size, processes)
    judged = judge(whole, CARD)
    shares = operations_share(judged)
    promised = PROMISED.get((global_batch_size, processes))
    return {
        "encoder": encoder,
        "image_size": image_size,
        "global_batch_size": global_batch_size,
        "processes": processes,
        "operations": {part: round(count) for part, count in judged.flops.items()},
        "heads_share": round(shares["heads"], 5),
        "loss_share": round(shares["loss"], 5),
        "promised": promised,
        "holds": promised is None or shares["heads"] + shares["loss"] < promised,
        "memory": memory(whole) if image_size == LARGE else None,
        "torch": version("torch"),
    }


def memory(whole: Recipe) -> dict[str, Any]:
    """Predicted bytes at the peak, in micro-batches of a few tiles; a process's logits are there several times."""
    found = judge(with_memory(with_micro_batch(whole, FEW), keep_last_micro_batch=False), CARD).memory
    return {
        "micro_batch_size": FEW,
        "logits_bytes": 4 * whole.per_device_batch_size * whole.batch.global_batch_size,
        "peak_allocated_bytes": found.peak_allocated_bytes,
        "peak_in": found.peak_operation,
        "heads_at_peak_bytes": found.breakdown_bytes["heads"],
        "temporaries_at_peak_bytes": found.breakdown_bytes["temporaries"],
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("encoder", "px", "batch / processes", "heads", "loss", "promise", "peak MiB", "in")
    for each in rows:
        promise = "" if each["promised"] is None else f"< {each['promised']:.0%}: {'yes' if each['holds'] else 'NO'}"
        table.add_row(
            each["encoder"],
            str(each["image_size"]),
            f"{each['global_batch_size']:,} / {each['processes']:,}",
            f"{each['heads_share']:.2%}",
            f"{each['loss_share']:.2%}",
            promise,
            "" if each["memory"] is None else f"{each['memory']['peak_allocated_bytes'] / MIB:,.0f}",
            "" if each["memory"] is None else each["memory"]["peak_in"],
        )
    console.print(table)


def main(
    encoders: Annotated[str, typer.Option(help="Names, with commas.")] = ",".join(ENCODER_NAMES),
    image_sizes: Annotated[str, typer.Option(help="Pixels, with commas.")] = "224,64,32",
) -> None:
    begun, rows = time.perf_counter(), []
    for encoder in encoders.split(","):
        patch = int(encoder.partition("patch")[2] or 1)
        for image_size in map(int, image_sizes.split(",")):
            for scale in SCALES:
                rows.append(row(encoder, image_size - image_size % patch, *scale))
                print(json.dumps(rows[-1]), flush=True)
    show(rows)
    console.print(f"{len(rows)} rows in {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    typer.run(main)
