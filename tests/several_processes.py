"""One of several gloo processes: runs a step in float64 on its share and prints what the parent compares."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from conftest import small_recipe
from test_step import make_views
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from moco_accel.moco import build_moco
from moco_accel.optim import build_optimizer
from moco_accel.step import build_accelerator, prepare, train_step


def count_sent_gradients(model: nn.Module) -> list[int]:
    """Its last entry counts the gradients that DDP averages over processes from here on."""
    sent = [0]

    def count(state, bucket):  # type: ignore[no-untyped-def] # DDP refuses annotations that are strings
        sent[-1] += bucket.buffer().numel()
        return allreduce_hook(dist.group.WORLD, bucket)

    if isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, count)
    return sent


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    recipe = small_recipe(**json.loads(sys.argv[1]))
    torch.manual_seed(0)
    accelerator = build_accelerator(recipe, cpu=True)
    moco = build_moco(recipe)
    model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
    sent = count_sent_gradients(model)
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
                    "trainable": sum(p.numel() for p in moco.parameters() if p.requires_grad),
                    "gradient": gradient[:: max(1, len(gradient) // 5000)].tolist(),
                    "gradient_norm": gradient.norm().item(),
                    "running": {n: v.double().sum().item() for n, v in heads.items() if "running" in n},
                }
            )
        )
    accelerator.end_training()


if __name__ == "__main__":
    main()
