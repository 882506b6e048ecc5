"""One of several gloo ranks: run two steps in float64 on its share of tiles, and print what the parent compares."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from support.recipes import small_recipe
from support.steps import all_gradients, own_views
from torch import Tensor

from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.recipe.encoder_names import VIT_SIZES, VitSize
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step


def count_gradient_reductions(moco: MoCo) -> list[int]:
    """Return a list whose last entry counts the all-reduces of the gradient buffer from now on."""
    counts, all_reduce = [0], dist.all_reduce

    def counting_all_reduce(values: Tensor, *args: Any, **kwargs: Any) -> Any:
        counts[-1] += values.data_ptr() == moco.gradient_buffer.data_ptr()
        return all_reduce(values, *args, **kwargs)

    dist.all_reduce = counting_all_reduce
    return counts


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    VIT_SIZES["tiny"] = VitSize(192, 3, 3)  # 3 of 12 blocks, for steps of milliseconds
    recipe = small_recipe(**json.loads(sys.argv[1]))
    torch.manual_seed(0)
    accelerator = build_accelerator(recipe, cpu=True)
    moco = build_moco(recipe)
    model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
    reductions = count_gradient_reductions(moco)
    losses = []
    for step in range(2):
        result = train_step(accelerator, model, optimizer, own_views(recipe, accelerator, step), recipe, 0.99)
        losses.append(accelerator.reduce(result.loss, "mean").item())
        reductions.append(0)
    if accelerator.is_main_process:
        gradient = all_gradients(moco)
        heads = {name: value for name, value in moco.state_dict().items() if "projector" in name or "predictor" in name}
        torch.set_printoptions(precision=17)
        print(
            json.dumps(
                {
                    "processes": accelerator.num_processes,
                    "group": dist.is_initialized(),
                    "losses": losses,
                    "gradient_reductions": reductions[:-1],
                    "gradient": gradient[:: max(1, len(gradient) // 5000)].tolist(),
                    "gradient_norm": gradient.norm().item(),
                    "running": {n: v.double().sum().item() for n, v in heads.items() if "running" in n},
                }
            )
        )
    accelerator.end_training()


if __name__ == "__main__":
    main()
