"""What a step costs as processes are added: measured on a CPU at 1, 2 and 4 processes, and predicted to 1,024 GPUs.

Measured, in rounds of one group of processes after the other: processor seconds that the busiest process takes for a
step (cores are fewer than processes, so that seconds by the clock say little), beside the operations that the planner
counts for it. `weak` keeps the tiles of a process, so that the batch grows; `strong` keeps the batch.

    python benchmarks/scaling.py measure --rounds 3 > benchmarks/results/scaling_measured.jsonl
    python benchmarks/scaling.py predict > benchmarks/results/scaling_predicted.jsonl
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import typer
from processes import our_step, recipe_of
from rich.console import Console

from moco_accel.processes.control_group import Agreement
from moco_accel.recipe.schema import Recipe
from moco_accel.training.step import build_accelerator
from planner.answer.request import Request, recipe_for
from planner.answer.search import best
from planner.cards.devices import CARDS
from planner.memory.candidate import Candidate
from planner.time.network import between_nodes, node_link_bytes, operations_share
from planner.trace.trace import trace_step

PROCESSES = (1, 2, 4)
ENCODERS = (("vit_tiny_patch16", 64), ("resnet18", 64))
TILES, MICRO, STEPS = 32, 8, 3
GPUS_PER_NODE = 8
NODES = (1, 2, 8, 32, 128)
PREDICTED = (("vit_small_patch16", "h100_sxm"), ("vit_base_patch16", "h100_sxm"), ("vit_small_patch16", "rtx3090"))
TILES_PER_GPU, PAPERS_BATCH = 512, 4096

app = typer.Typer(help=__doc__, add_completion=False)
console = Console(stderr=True)


@app.command()
def measure(rounds: int = 3) -> None:
    """Processor seconds a step, at 1, 2 and 4 processes."""
    cases = [(encoder, side, kind, n) for encoder, side in ENCODERS for kind in ("weak", "strong") for n in PROCESSES]
    seconds: dict[Any, list[float]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            seconds[case].append(_launched(case))
            console.print(f"round {number + 1}/{rounds}: {case}: {seconds[case][-1]:.3f} s of a core a step")
    for case in cases:
        encoder, side, kind, n = case
        alone = (*case[:3], 1)
        ratios = [many / one for many, one in zip(seconds[case], seconds[alone], strict=True)]
        recipe, recipe_alone = _recipe(*case), _recipe(*alone)
        row = {
            "encoder": encoder,
            "image_size": side,
            "kind": kind,
            "processes": n,
            "global_batch_size": recipe.batch.global_batch_size,
            "core_seconds_per_step": round(statistics.median(seconds[case]), 4),
            "over_one_process": round(statistics.median(ratios), 3),
            "over_one_process_each_round": [round(ratio, 3) for ratio in ratios],
            "operations_over_one_process": round(_operations(recipe) / _operations(recipe_alone), 3),
            "torch": torch.__version__,
            "cores": os.cpu_count(),
        }
        print(json.dumps(row), flush=True)


@app.command(hidden=True)
def inside(encoder: str, side: int, batch: int) -> None:
    """One process of a group: prints what the busiest took."""
    torch.set_num_threads(1)
    processes = int(os.environ["WORLD_SIZE"])
    if processes > 1:
        dist.init_process_group("gloo")
    recipe = recipe_of(encoder, side, batch, MICRO, processes)
    accelerator = build_accelerator(recipe, cpu=True)
    torch.manual_seed(dist.get_rank() if processes > 1 else 0)
    shape = batch // processes, 3, side, side
    views = torch.randn(shape).split(MICRO), torch.randn(shape).split(MICRO)
    step, taken = our_step(accelerator, recipe, views, Agreement()), []
    for _ in range(STEPS + 1):  # the first one warms up
        begun = time.process_time()
        step()
        taken.append(time.process_time() - begun)
    own = torch.tensor(statistics.median(taken[1:]))
    if processes > 1:
        dist.all_reduce(own, dist.ReduceOp.MAX)
    if accelerator.is_main_process:
        print(float(own))
    accelerator.end_training()


def _launched(case: tuple[str, int, str, int]) -> float:
    encoder, side, _, processes = case
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    arguments = [str(Path(__file__)), "inside", encoder, str(side), str(_recipe(*case).batch.global_batch_size)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launch, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def _recipe(encoder: str, side: int, kind: str, processes: int) -> Recipe:
    batch = TILES * processes if kind == "weak" else TILES * max(PROCESSES)
    return recipe_of(encoder, side, batch, MICRO, processes)


def _operations(recipe: Recipe) -> int:
    return sum(counted.flops for counted in trace_step(recipe, None).flops)


@app.command()
def predict() -> None:
    """Steps of many GPUs, from counted operations and bytes."""
    for encoder, card in PREDICTED:
        for kind in ("weak", "strong"):
            for nodes in NODES:
                print(json.dumps(_predicted(encoder, card, kind, nodes)), flush=True)


def _predicted(encoder: str, card: str, kind: str, nodes: int) -> dict[str, Any]:
    gpus = nodes * GPUS_PER_NODE
    request = Request(
        gpus=GPUS_PER_NODE,
        nodes=nodes,
        encoder=encoder,
        vram_gib=CARDS[card].marketed_gib,
        gpu=card,
        mixed_precision="bf16",
        global_batch_size=TILES_PER_GPU * gpus if kind == "weak" else PAPERS_BATCH,
    )
    found = best(recipe_for(request, encoder), CARDS[card])
    links = {link.gbits_per_second: link for link in between_nodes(found)}
    return {
        "predicted": True,
        "encoder": encoder,
        "card": card,
        "kind": kind,
        "nodes": nodes,
        "gpus": gpus,
        "global_batch_size": found.recipe.batch.global_batch_size,
        "micro_batch_size": found.recipe.batch.micro_batch_size,
        "fits": found.memory.fits,
        "peak_reserved_bytes": found.memory.peak_reserved_bytes,
        "heads_share": round(operations_share(found)["heads"], 5),
        "loss_share": round(operations_share(found)["loss"], 5),
        "seconds_computing": round(found.seconds_per_step, 4),
        "node_link_bytes": round(node_link_bytes(found)),
        "sent_bytes": {f"{sent.what}, {sent.operation}": sent.size_bytes for sent in found.sent},
        "meetings": found.meetings,
        "seconds_sending": {gbits: round(link.seconds, 4) for gbits, link in links.items()},
        "tiles_per_second": {"compute alone": round(found.tiles_per_second)} | _with_sending(found),
    }


def _with_sending(found: Candidate) -> dict[str, int]:
    batch, computing = found.recipe.batch.global_batch_size, found.seconds_per_step
    return {
        f"{link.gbits_per_second} Gbit/s": round(batch / (computing + link.seconds)) for link in between_nodes(found)
    }


if __name__ == "__main__":
    app()
