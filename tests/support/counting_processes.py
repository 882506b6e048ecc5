"""One of several gloo ranks: run a step in fp32, and print the bytes of its collectives and its status exchanges."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from support.recipes import small_recipe
from support.steps import own_views
from torch import Tensor

from moco_accel.networks.moco import build_moco
from moco_accel.processes.control_group import ControlGroup, use_control_group
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step

# the one that the step uses
_ALL_GATHER = next(name for name in ("all_gather_single", "all_gather_into_tensor") if hasattr(dist, name))
counted: Counter[str] = Counter()


class CountingControlGroup(ControlGroup):
    def exchange_status(self) -> None:
        counted["status_exchanges"] += 1
        super().exchange_status()


def count_collectives() -> None:
    """Count the bytes of collectives by operation, without status exchanges, which use a group of their own."""

    def counting(name: str, collective: Any) -> Any:
        def wrapped(values: Tensor, *arguments: Any, group: Any = None, **options: Any) -> Any:
            if group is None:
                counted[name] += values.nbytes
            return collective(values, *arguments, group=group, **options)

        return wrapped

    dist.all_reduce = counting("all-reduce", dist.all_reduce)
    setattr(dist, _ALL_GATHER, counting("all-gather", getattr(dist, _ALL_GATHER)))


def main() -> None:
    torch.set_num_threads(1)
    recipe = small_recipe(**json.loads(sys.argv[1]))
    accelerator = build_accelerator(recipe, cpu=True)
    use_control_group(CountingControlGroup())
    moco = build_moco(recipe)
    model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
    views = own_views(recipe, accelerator)
    count_collectives()
    train_step(accelerator, model, optimizer, views, recipe, 0.99)
    if accelerator.is_main_process:
        print(json.dumps(counted))
    accelerator.end_training()


if __name__ == "__main__":
    main()
