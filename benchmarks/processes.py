"""Seconds per optimizer step of several processes, side by side.

As it is; without the meetings by which processes agree; and with DistributedDataParallel, which sends gradients during
backward where we send them after it.

Every round times one step of each, in an order that moves on by one each round; a ratio is taken within a round.

    torchrun --standalone --nproc_per_node=2 benchmarks/processes.py --rounds 15 >> benchmarks/results/processes.jsonl
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from moco_accel.networks.collectives import gather_keys
from moco_accel.networks.moco import build_moco
from moco_accel.processes.control_group import Agreement, meet_through
from moco_accel.recipe.constants import RESNET_NAMES
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import OneAttempt, Views, build_accelerator, prepare, train_step

OURS, ALONE, DDP = "ours", "without meetings", "DistributedDataParallel"


class Counting(Agreement):
    meetings = 0

    def meet(self) -> None:
        self.meetings += 1
        super().meet()


def recipe_of(encoder: str, side: int, batch: int, micro: int, processes: int) -> Recipe:
    sizes = {"global_batch_size": batch, "micro_batch_size": micro, "accumulation_steps": batch // micro // processes}
    return recipe_from_dict(
        {
            "encoder": {"name": encoder, "image_size": side, "freeze_patch_projection": encoder not in RESNET_NAMES},
            "batch": sizes,
            "hardware": {"num_devices": processes},
            "optimizer": {"name": "adamw", "lr": scaled_lr(1.5e-4, batch)},
            "memory": {"mixed_precision": "no"},
        }
    )


def our_step(accelerator: Accelerator, recipe: Recipe, views: Views, agreement: Agreement | None) -> Callable[[], None]:
    moco = build_moco(recipe)
    _, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))

    def run() -> None:
        meet_through(agreement)
        train_step(accelerator, moco, optimizer, views, recipe, 0.99, OneAttempt())
        meet_through(None)

    return run


def ddp_step(recipe: Recipe, views: Views) -> Callable[[], None]:
    """The same, but for who sends the gradients, and when."""
    moco = build_moco(recipe)
    model = DistributedDataParallel(moco, gradient_as_bucket_view=True, broadcast_buffers=False)
    optimizer = build_optimizer(recipe, moco)

    def run() -> None:
        moco.update_momentum_side(0.99)
        optimizer.zero_grad(set_to_none=False)
        keys1, keys2 = (gather_keys(moco.keys(view)) for view in views)
        with model.no_sync():
            model(views[0], keys2)[0].backward()
        model(views[1], keys1)[0].backward()
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--encoder", default="vit_tiny_patch16")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--micro", type=int, default=16)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    processes = dist.get_world_size()
    recipe = recipe_of(asked.encoder, asked.image_size, asked.batch, asked.micro, processes)
    accelerator, agreement = build_accelerator(recipe, cpu=True), Counting()
    torch.manual_seed(dist.get_rank())
    shape = asked.batch // processes, 3, asked.image_size, asked.image_size
    views = torch.randn(shape).split(asked.micro), torch.randn(shape).split(asked.micro)
    steps = {
        OURS: our_step(accelerator, recipe, views, agreement),
        ALONE: our_step(accelerator, recipe, views, None),
        DDP: ddp_step(recipe, views),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-1, asked.rounds):  # the first one warms up
        names = list(steps)[number % 3 :] + list(steps)[: number % 3]
        for name in names:
            dist.barrier()
            begun = time.perf_counter()
            steps[name]()
            dist.barrier()
            if number >= 0:
                seconds[name].append(time.perf_counter() - begun)
    if dist.get_rank() == 0:
        ratios = {
            name: statistics.median(a / b for a, b in zip(seconds[OURS], seconds[name], strict=True))
            for name in (ALONE, DDP)
        }
        print(
            json.dumps(
                vars(asked)
                | {
                    "processes": processes,
                    "meetings_per_step": agreement.meetings // (asked.rounds + 1),
                    "seconds": {name: round(statistics.median(times), 4) for name, times in seconds.items()},
                    "ours_over": {name: round(ratio, 4) for name, ratio in ratios.items()},
                    "torch": torch.__version__,
                    "machine": f"{platform.machine()}, one thread a process, gloo",
                }
            )
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
