"""One of several gloo processes: runs a step in fp32 and prints what torch.distributed was given to send, in bytes."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from support.recipes import small_recipe
from support.step_processes import make_views
from torch import Tensor

from moco_accel.networks.moco import build_moco
from moco_accel.processes.control_group import Agreement, meet_through
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step

GATHERS = [name for name in ("all_gather_single", "all_gather_into_tensor") if hasattr(dist, name)]


counted: Counter[str] = Counter()


class Counting(Agreement):
    def meet(self) -> None:
        counted["meetings"] += 1
        super().meet()


def count_sent() -> None:
    """Bytes of what all make together, by operation; not a meeting's word, which goes through a group of its own."""

    def counting(name: str, send: Any) -> Any:
        def sending(values: Tensor, *arguments: Any, group: Any = None, **others: Any) -> Any:
            if group is None:
                counted[name] += values.nbytes
            return send(values, *arguments, group=group, **others)

        return sending

    dist.all_reduce = counting("all-reduce", dist.all_reduce)
    for gather in GATHERS[:1]:  # the step's own choice
        setattr(dist, gather, counting("all-gather", getattr(dist, gather)))


def main() -> None:
    torch.set_num_threads(1)
    recipe = small_recipe(**json.loads(sys.argv[1]))
    accelerator = build_accelerator(recipe, cpu=True)
    meet_through(Counting())
    moco = build_moco(recipe)
    model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
    mine = make_views(recipe, 0).float().chunk(accelerator.num_processes, dim=1)[accelerator.process_index]
    views = mine[0].split(recipe.batch.micro_batch_size), mine[1].split(recipe.batch.micro_batch_size)
    count_sent()
    train_step(accelerator, model, optimizer, views, recipe, 0.99)
    if accelerator.is_main_process:
        print(json.dumps(counted))
    accelerator.end_training()


if __name__ == "__main__":
    main()
