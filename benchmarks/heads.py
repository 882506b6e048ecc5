"""Compute the share of operations that heads and loss take on the whole batch, as batch and ranks grow.

Nothing is measured: operations and bytes are counted in the trainer's step on fake tensors, as in moco-plan, for a
GPU with bf16. No micro-batch is recomputed, which makes the shares as large as possible. Memory is that of
micro-batches of 32 tiles of 224 pixels, where the encoder needs little compared with the loss.

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

from moco_accel.recipe.encoder_names import ENCODER_NAMES
from moco_accel.recipe.schema import Recipe
from planner.answer.request import Request, build_recipe
from planner.cards.card import MIB
from planner.cards.lookup import CARDS
from planner.search.best_recipe import evaluate
from planner.time.step_time import operations_share
from planner.trace.scaling import with_memory, with_micro_batch

SCALES = ((4096, 2), (32_768, 64), (1_048_576, 1024))
MAX_SHARES = {(4096, 2): 0.05, (32_768, 64): 0.10}
CARD = CARDS["h100_sxm"]
MICRO_BATCH_SIZE, MEMORY_IMAGE_SIZE = 32, 224
console = Console(stderr=True)


def recipe_at(encoder: str, image_size: int, global_batch_size: int, processes: int) -> Recipe:
    """Return a recipe with one micro-batch per rank."""
    request = Request(
        gpus=processes,
        encoder=encoder,
        image_size=image_size,
        global_batch_size=global_batch_size,
        vram_gib=CARD.marketed_gib,
        mixed_precision="bf16",
    )
    return build_recipe(request, encoder)


def row(encoder: str, image_size: int, global_batch_size: int, processes: int) -> dict[str, Any]:
    """Return the operations of a rank's step by part, the shares of heads and loss, and bytes at the peak."""
    whole = recipe_at(encoder, image_size, global_batch_size, processes)
    candidate = evaluate(whole, CARD)
    shares = operations_share(candidate.flops)
    limit = MAX_SHARES.get((global_batch_size, processes))
    return {
        "encoder": encoder,
        "image_size": image_size,
        "global_batch_size": global_batch_size,
        "processes": processes,
        "operations": {part: round(count) for part, count in candidate.flops.items()},
        "heads_share": round(shares["heads"], 5),
        "loss_share": round(shares["loss"], 5),
        "promised": limit,
        "holds": limit is None or shares["heads"] + shares["loss"] < limit,
        "memory": memory(whole) if image_size == MEMORY_IMAGE_SIZE else None,
        "torch": version("torch"),
    }


def memory(whole: Recipe) -> dict[str, Any]:
    """Return predicted bytes at the peak, in small micro-batches; a rank holds its logits several times."""
    found = evaluate(with_memory(with_micro_batch(whole, MICRO_BATCH_SIZE), keep_last_micro_batch=False), CARD).memory
    return {
        "micro_batch_size": MICRO_BATCH_SIZE,
        "logits_bytes": 4 * whole.per_device_batch_size * whole.batch.global_batch_size,
        "peak_allocated_bytes": found.peak_allocated_bytes,
        "peak_in": found.peak_operation,
        "heads_at_peak_bytes": found.breakdown_bytes["heads"],
        "temporaries_at_peak_bytes": found.breakdown_bytes["temporaries"],
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table("encoder", "px", "batch / processes", "heads", "loss", "limit", "peak MiB", "in")
    for each in rows:
        limit = "" if each["promised"] is None else f"< {each['promised']:.0%}: {'yes' if each['holds'] else 'NO'}"
        table.add_row(
            each["encoder"],
            str(each["image_size"]),
            f"{each['global_batch_size']:,} / {each['processes']:,}",
            f"{each['heads_share']:.2%}",
            f"{each['loss_share']:.2%}",
            limit,
            "" if each["memory"] is None else f"{each['memory']['peak_allocated_bytes'] / MIB:,.0f}",
            "" if each["memory"] is None else each["memory"]["peak_in"],
        )
    console.print(table)


def main(
    encoders: Annotated[str, typer.Option(help="Encoder names, separated by commas.")] = ",".join(ENCODER_NAMES),
    image_sizes: Annotated[str, typer.Option(help="Image sizes in pixels, separated by commas.")] = "224,64,32",
) -> None:
    """Print one JSON row per encoder, image size and scale on stdout, a table on stderr."""
    start, rows = time.perf_counter(), []
    for encoder in encoders.split(","):
        patch = int(encoder.partition("patch")[2] or 1)
        for image_size in map(int, image_sizes.split(",")):
            for scale in SCALES:
                rows.append(row(encoder, image_size - image_size % patch, *scale))
                print(json.dumps(rows[-1]), flush=True)
    print_table(rows)
    console.print(f"{len(rows)} rows in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
