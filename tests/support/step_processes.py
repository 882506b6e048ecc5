"""One of several gloo processes: runs a step in float64 on its share and prints what the parent compares."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from support.recipes import small_recipe
from support.steps import make_views
from torch import Tensor

from moco_accel.networks.encoders import _VIT_SIZES
from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step


def count_sent_gradients(moco: MoCo) -> list[int]:
    """Its last entry counts how often the gradients are summed over processes from here on."""
    sent, send = [0], dist.all_reduce

    def count(values: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent[-1] += values.data_ptr() == moco.gradient.data_ptr()
        return send(values, *args, **kwargs)

    dist.all_reduce = count
    return sent


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    _VIT_SIZES["tiny"] = (192, 3, 3)  # three blocks of twelve: steps in milliseconds
    recipe = small_recipe(**json.loads(sys.argv[1]))
    torch.manual_seed(0)
    accelerator = build_accelerator(recipe, cpu=True)
    moco = build_moco(recipe)
    model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
    sent = count_sent_gradients(moco)
    losses = []
    for step in range(2):
        mine = make_views(recipe, step).chunk(accelerator.num_processes, dim=1)[accelerator.process_index]
        views = mine[0].split(recipe.batch.micro_batch_size), mine[1].split(recipe.batch.micro_batch_size)
        result = train_step(accelerator, model, optimizer, views, recipe, 0.99)
        losses.append(accelerator.reduce(result.loss, "mean").item())
        sent.append(0)
    if accelerator.is_main_process:
        gradient = torch.cat([p.grad.flatten() for p in moco.parameters() if p.grad is not None])
        heads = {name: value for name, value in moco.state_dict().items() if "projector" in name or "predictor" in name}
        torch.set_printoptions(precision=17)
        print(
            json.dumps(
                {
                    "processes": accelerator.num_processes,
                    "group": dist.is_initialized(),
                    "losses": losses,
                    "sent": sent[:-1],
                    "gradient": gradient[:: max(1, len(gradient) // 5000)].tolist(),
                    "gradient_norm": gradient.norm().item(),
                    "running": {n: v.double().sum().item() for n, v in heads.items() if "running" in n},
                }
            )
        )
    accelerator.end_training()


if __name__ == "__main__":
    main()
