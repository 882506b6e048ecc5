"""Scaling of a step with the number of ranks: measured on a CPU for 1, 2 and 4 ranks, predicted for up to 1,024 GPUs.

`measure` reports the CPU seconds of the busiest rank per step, and the operations that the planner counts for it; there
are fewer cores than ranks, so wall time would not be comparable. `weak` keeps the tiles per rank, `strong` the batch.

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
from processes import build_recipe as build_step_recipe
from processes import our_step
from rich.console import Console

from moco_accel.processes.control_group import ControlGroup
from moco_accel.recipe.schema import Recipe
from moco_accel.training.step import build_accelerator
from planner.answer.request import Request, build_recipe
from planner.cards.lookup import CARDS
from planner.search.best_recipe import find_best
from planner.search.candidate import Candidate
from planner.time.step_time import NodeLink, node_link_bytes, node_links, operations_share
from planner.trace.trace import trace_step

PROCESSES = (1, 2, 4)
ENCODERS = (("vit_tiny_patch16", 64), ("resnet18", 64))
TILES, MICRO, STEPS = 32, 8, 3
GPUS_PER_NODE = 8
NODES = (1, 2, 8, 32, 128)
PREDICTED = (("vit_small_patch16", "h100_sxm"), ("vit_base_patch16", "h100_sxm"), ("vit_small_patch16", "rtx3090"))
TILES_PER_GPU, PAPER_BATCH = 512, 4096

app = typer.Typer(help=__doc__, add_completion=False)
console = Console(stderr=True)


@app.command()
def measure(rounds: int = 3) -> None:
    """Measure CPU seconds per step, on 1, 2 and 4 ranks."""
    cases = [(encoder, side, kind, n) for encoder, side in ENCODERS for kind in ("weak", "strong") for n in PROCESSES]
    seconds: dict[Any, list[float]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            seconds[case].append(_launch(case))
            console.print(f"round {number + 1}/{rounds}: {case}: {seconds[case][-1]:.3f} CPU s per step")
    for case in cases:
        encoder, side, kind, n = case
        single = (*case[:3], 1)
        ratios = [several / one for several, one in zip(seconds[case], seconds[single], strict=True)]
        recipe, single_recipe = _recipe(*case), _recipe(*single)
        row = {
            "encoder": encoder,
            "image_size": side,
            "kind": kind,
            "processes": n,
            "global_batch_size": recipe.batch.global_batch_size,
            "core_seconds_per_step": round(statistics.median(seconds[case]), 4),
            "over_one_process": round(statistics.median(ratios), 3),
            "over_one_process_each_round": [round(ratio, 3) for ratio in ratios],
            "operations_over_one_process": round(_operations(recipe) / _operations(single_recipe), 3),
            "torch": torch.__version__,
            "cores": os.cpu_count(),
        }
        print(json.dumps(row), flush=True)


@app.command(hidden=True)
def inside(encoder: str, side: int, batch: int) -> None:
    """Run one rank; rank 0 prints the CPU seconds of the busiest rank."""
    torch.set_num_threads(1)
    processes = int(os.environ["WORLD_SIZE"])
    if processes > 1:
        dist.init_process_group("gloo")
    recipe = build_step_recipe(encoder, side, batch, MICRO, processes)
    accelerator = build_accelerator(recipe, cpu=True)
    torch.manual_seed(dist.get_rank() if processes > 1 else 0)
    shape = batch // processes, 3, side, side
    views = torch.randn(shape).split(MICRO), torch.randn(shape).split(MICRO)
    step, seconds = our_step(accelerator, recipe, views, ControlGroup()), []
    for _ in range(STEPS + 1):  # the first step warms up
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    own = torch.tensor(statistics.median(seconds[1:]))
    if processes > 1:
        dist.all_reduce(own, dist.ReduceOp.MAX)
    if accelerator.is_main_process:
        print(float(own))
    accelerator.end_training()


def _launch(case: tuple[str, int, str, int]) -> float:
    encoder, side, _, processes = case
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    arguments = [str(Path(__file__)), "inside", encoder, str(side), str(_recipe(*case).batch.global_batch_size)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *launch, *arguments], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return float(result.stdout.split()[-1])


def _recipe(encoder: str, side: int, kind: str, processes: int) -> Recipe:
    batch = TILES * processes if kind == "weak" else TILES * max(PROCESSES)
    return build_step_recipe(encoder, side, batch, MICRO, processes)


def _operations(recipe: Recipe) -> int:
    return sum(counted.flops for counted in trace_step(recipe, None).flops)


@app.command()
def predict() -> None:
    """Predict steps on many GPUs from counted operations and bytes."""
    for encoder, card in PREDICTED:
        for kind in ("weak", "strong"):
            for nodes in NODES:
                print(json.dumps(_predict(encoder, card, kind, nodes)), flush=True)


def _predict(encoder: str, card: str, kind: str, nodes: int) -> dict[str, Any]:
    gpus = nodes * GPUS_PER_NODE
    request = Request(
        gpus=GPUS_PER_NODE,
        nodes=nodes,
        encoder=encoder,
        vram_gib=CARDS[card].marketed_gib,
        gpu=card,
        mixed_precision="bf16",
        global_batch_size=TILES_PER_GPU * gpus if kind == "weak" else PAPER_BATCH,
    )
    found = find_best(build_recipe(request, encoder), CARDS[card])
    links = {link.gbits_per_second: link for link in _links(found)}
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
        "heads_share": round(operations_share(found.flops)["heads"], 5),
        "loss_share": round(operations_share(found.flops)["loss"], 5),
        "seconds_computing": round(found.computing_seconds, 4),
        "node_link_bytes": round(node_link_bytes(found.recipe.hardware, found.collectives)),
        "sent_bytes": {f"{sent.what}, {sent.operation}": sent.size_bytes for sent in found.collectives},
        "meetings": found.status_exchanges,
        "seconds_sending": {gbits: round(link.seconds, 4) for gbits, link in links.items()},
        "tiles_per_second": {"compute alone": round(found.tiles_per_second)} | _with_sending(found),
    }


def _links(found: Candidate) -> list[NodeLink]:
    return node_links(found.recipe.hardware, found.collectives, found.computing_seconds)


def _with_sending(found: Candidate) -> dict[str, int]:
    batch, computing = found.recipe.batch.global_batch_size, found.computing_seconds
    return {f"{link.gbits_per_second} Gbit/s": round(batch / (computing + link.seconds)) for link in _links(found)}


if __name__ == "__main__":
    app()
