"""Compare seconds per optimizer step on several ranks: ours, ours without status exchanges, DistributedDataParallel.

DistributedDataParallel averages gradients during backward, our step after it. Every round times one step of each, in
rotating order; ratios are taken within a round.

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
from moco_accel.processes.control_group import ControlGroup, use_control_group
from moco_accel.recipe.encoder_names import RESNET_NAMES
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import RetryPolicy, Views, build_accelerator, prepare, train_step

# keys of the JSON rows
OURS, WITHOUT_EXCHANGES, DDP = "ours", "without meetings", "DistributedDataParallel"


class CountingControlGroup(ControlGroup):
    exchanges = 0

    def exchange_status(self) -> None:
        self.exchanges += 1
        super().exchange_status()


def build_recipe(encoder: str, side: int, batch: int, micro: int, processes: int) -> Recipe:
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


def our_step(
    accelerator: Accelerator, recipe: Recipe, views: Views, control_group: ControlGroup | None
) -> Callable[[], None]:
    moco = build_moco(recipe)
    _, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))

    def run() -> None:
        use_control_group(control_group)
        train_step(accelerator, moco, optimizer, views, recipe, 0.99, RetryPolicy())
        use_control_group(None)

    return run


def ddp_step(recipe: Recipe, views: Views) -> Callable[[], None]:
    """Return our step with gradients averaged by DistributedDataParallel during backward."""
    moco = build_moco(recipe)
    model = DistributedDataParallel(moco, gradient_as_bucket_view=True, broadcast_buffers=False)
    optimizer = build_optimizer(recipe, moco)

    def run() -> None:
        moco.update_momentum_encoder(0.99)
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    processes = dist.get_world_size()
    recipe = build_recipe(arguments.encoder, arguments.image_size, arguments.batch, arguments.micro, processes)
    accelerator, control_group = build_accelerator(recipe, cpu=True), CountingControlGroup()
    torch.manual_seed(dist.get_rank())
    shape = arguments.batch // processes, 3, arguments.image_size, arguments.image_size
    views = torch.randn(shape).split(arguments.micro), torch.randn(shape).split(arguments.micro)
    steps = {
        OURS: our_step(accelerator, recipe, views, control_group),
        WITHOUT_EXCHANGES: our_step(accelerator, recipe, views, None),
        DDP: ddp_step(recipe, views),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-1, arguments.rounds):  # round -1 warms up
        names = list(steps)[number % 3 :] + list(steps)[: number % 3]
        for name in names:
            dist.barrier()
            start = time.perf_counter()
            steps[name]()
            dist.barrier()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        ratios = {
            name: statistics.median(a / b for a, b in zip(seconds[OURS], seconds[name], strict=True))
            for name in (WITHOUT_EXCHANGES, DDP)
        }
        print(
            json.dumps(
                vars(arguments)
                | {
                    "processes": processes,
                    "meetings_per_step": control_group.exchanges // (arguments.rounds + 1),
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
