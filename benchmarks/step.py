"""Compare seconds per optimizer step and traced memory of several steps on the same encoder.

The steps are ours on the whole batch and in micro-batches, the paper's with both views at once, and those of lightly
and torchgeo, if they are installed (`pip install lightly torchgeo`). Every round times one step of each, in rotating
order; ratios are taken within a round.

    python benchmarks/step.py --rounds 9 >> benchmarks/results/step.jsonl
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import __version__ as accelerate_version
from other_steps import OTHERS, Step
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import __version__ as transformers_version

from moco_accel.networks.moco import build_moco
from moco_accel.recipe.encoder_names import RESNET_NAMES
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import StepResult, build_accelerator, prepare, train_step
from planner.memory.allocator import replay
from planner.trace.events import Trace
from planner.trace.trace import both_views_step, trace_step

NAIVE = "both views at once"
PERSISTENT = ("weights", "momentum_weights", "gradients", "optimizer_state")
MIB = 1 << 20
console = Console(stderr=True)


def build_recipe(encoder: str, side: int, batch: int, micro: int, precision: str = "no") -> Recipe:
    sizes = {"global_batch_size": batch, "micro_batch_size": micro, "accumulation_steps": batch // micro}
    return recipe_from_dict(
        {
            "encoder": {"name": encoder, "image_size": side, "freeze_patch_projection": encoder not in RESNET_NAMES},
            "batch": sizes,
            "optimizer": {"name": "adamw", "lr": scaled_lr(1.5e-4, batch)},
            "memory": {"mixed_precision": precision},
        }
    )


def our_step(recipe: Recipe, views: Tensor, step: Callable[..., StepResult] = train_step) -> Step:
    accelerator = build_accelerator(recipe, cpu=True)
    moco = build_moco(recipe)
    model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
    first, second = (view.split(recipe.batch.micro_batch_size) for view in views)
    return lambda: step(accelerator, model, optimizer, (first, second), recipe, 0.99).loss.item()


def activation_peak_bytes(trace: Trace) -> int:
    """Return the peak of all tensors but weights, gradients and optimizer state."""
    live: dict[int, int] = {}
    now = peak = 0
    for number, size in trace.events:
        if trace.tensors[number].category in PERSISTENT:
            continue
        now += size if size else -live.pop(number)
        if size:
            live[number] = size
        peak = max(peak, now)
    return peak


def traced_memory(encoder: str, tiles: int, micro_batches: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the predicted memory on a GPU of compute capability 8.6: bf16, 224 px, `tiles` per device."""
    rows = []
    variants: list[tuple[str, int, Callable[..., StepResult]]] = [(NAIVE, tiles, both_views_step)]
    variants += [(_name(tiles, micro), micro, train_step) for micro in (tiles, *micro_batches)]
    for name, micro, step in variants:
        trace = trace_step(build_recipe(encoder, 224, tiles, micro, "bf16"), 86, steps=2, step=step)
        sizes = {
            "activation_peak_mib": activation_peak_bytes(trace) // MIB,
            "reserved_peak_mib": replay(trace.events).peak_reserved_bytes // MIB,
        }
        rows.append({"kind": "traced", "encoder": encoder, "side": 224, "tiles": tiles, "step": name, **sizes})
        rows[-1]["activation_ratio"] = round(sizes["activation_peak_mib"] / rows[0]["activation_peak_mib"], 4)
    return rows


def _name(batch: int, micro: int) -> str:
    return "ours, whole" if micro == batch else f"ours, micro-batches of {micro}"


def steps_to_time(encoder: str, side: int, batch: int, micro_batches: tuple[int, ...]) -> tuple[dict[str, Step], Any]:
    """Return the steps by name, each with its own networks, and the versions of the other libraries."""
    views = torch.randn(2, batch, 3, side, side)
    steps = {NAIVE: our_step(build_recipe(encoder, side, batch, batch), views, both_views_step)}
    for micro in (batch, *micro_batches):
        steps[_name(batch, micro)] = our_step(build_recipe(encoder, side, batch, micro), views)
    versions = {}
    for name, build in OTHERS.items():
        try:
            versions[name.split()[0]], steps[name] = build(build_recipe(encoder, side, batch, batch), views)
        except ImportError as error:
            console.print(f"{name} skipped: {error}")
    return steps, versions


def timed_rounds(steps: dict[str, Step], rounds: int) -> list[dict[str, float]]:
    names = list(steps)
    with console.status("warming up") as status:
        for name, step in steps.items():
            console.print(f"{name}: first loss {step():.4f}")
        seconds = []
        for turn in range(rounds):
            status.update(f"round {turn + 1} of {rounds}")
            row = {}
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                start = time.perf_counter()
                steps[name]()
                row[name] = time.perf_counter() - start
            seconds.append({name: round(row[name], 4) for name in names})
    return seconds


def print_table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*header, title=title, box=None, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main(
    encoder: Annotated[str, typer.Option(help="encoder.name of a recipe.")] = "vit_small_patch16",
    side: Annotated[int, typer.Option(help="Image size in pixels.")] = 112,
    batch: int = 32,
    micro: Annotated[list[int] | None, typer.Option(help="Micro-batch sizes. [default: 8, 4]")] = None,
    rounds: int = 9,
    traced_tiles: Annotated[int, typer.Option(help="Tiles per device of the traced steps; 0 skips them.")] = 128,
) -> None:
    """Compare steps: one JSON row per round and traced step on stdout, tables on stderr."""
    micro_batches = tuple(micro or (8, 4))
    machine = {"processor": _processor(), "threads": torch.get_num_threads(), "python": platform.python_version()}
    steps, versions = steps_to_time(encoder, side, batch, micro_batches)
    versions |= {
        "torch": str(torch.__version__),
        "transformers": transformers_version,
        "accelerate": accelerate_version,
    }
    seconds = timed_rounds(steps, rounds)
    for number, row in enumerate(seconds):
        setting = {"kind": "timed", "encoder": encoder, "side": side, "batch": batch, "round": number}
        print(json.dumps({**setting, "seconds": row, **machine, "versions": versions}))
    table = []
    for name in steps:
        ratios = sorted(row[NAIVE] / row[name] for row in seconds)
        median = sorted(row[name] for row in seconds)[len(seconds) // 2]
        speed = f"{ratios[len(ratios) // 2]:.3f} × ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        table.append((name, f"{median:.2f}", speed))
    print_table(f"{encoder}, {side} px, {batch} tiles, fp32", ("step", "s", "speed relative to the first"), table)
    if traced_tiles:
        rows = traced_memory(encoder, traced_tiles, tuple(m * traced_tiles // batch for m in micro_batches))
        for row in rows:
            print(json.dumps(row))
        columns = ("step", "activation_peak_mib", "activation_ratio", "reserved_peak_mib")
        title = f"{encoder}, 224 px, {traced_tiles} tiles a device, bf16: predicted memory"
        print_table(title, columns, [tuple(str(row[column]) for column in columns) for row in rows])


def _processor() -> str:
    with Path("/proc/cpuinfo").open() as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    typer.run(main)
