"""One of several gloo ranks: steps in which a rank runs out of memory, compared with undisturbed steps.

The last argument, or stdin, is a JSON list of cases {"rank", "place", "nth", "step"}. Prints the outcome of each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from support.recipes import small_recipe
from support.steps import own_views
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.processes.control_group import ControlGroup, use_control_group
from moco_accel.recipe.encoder_names import VIT_SIZES, VitSize
from moco_accel.recipe.schema import Recipe
from moco_accel.training import step as step_module
from moco_accel.training.oom_recovery import OutOfMemoryRecovery
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step

STEPS = 2


class Fault:
    """Raises an out-of-memory error at its `nth` call (from 0) while it is active, if it is on this rank."""

    def __init__(self, nth: int, is_on_rank: bool) -> None:
        self.nth, self.is_on_rank, self.calls, self.is_active, self.was_raised = nth, is_on_rank, 0, False, False

    def __call__(self, *_: Any) -> None:
        if not self.is_active:
            return
        self.calls += 1
        if self.calls == self.nth + 1 and self.is_on_rank:
            self.was_raised = True
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")


def install(fault: Fault, place: str, moco: MoCo, optimizer: Any) -> None:
    """Install a fault at a module's forward or backward, or before or after a function."""
    when, _, name = place.partition(" ")
    if name in ("momentum update", "optimizer"):
        owner, attribute = (moco, "update_momentum_encoder") if name == "momentum update" else (optimizer, "step")
        _wrap(owner, attribute, fault, when)
    elif name == "half the optimizer":
        optimizer.optimizer.step = partial(_change_one, optimizer.optimizer.param_groups[0]["params"][0], fault)
    elif name == "average":
        pass  # see `fault_in_average`
    else:
        module = moco.get_submodule(name)
        if when == "forward":
            module.register_forward_pre_hook(fault)
        else:
            module.register_full_backward_pre_hook(fault)


@torch.no_grad()
def _change_one(parameter: Tensor, fault: Fault, _: None) -> None:
    parameter.add_(1.0)
    fault()


def _wrap(owner: Any, attribute: str, fault: Fault, when: str) -> None:
    function: Callable[..., Any] = getattr(owner, attribute)

    def wrapped(*args: Any) -> Any:
        if when == "before":
            fault()
        result = function(*args)
        if when == "after":
            fault()
        return result

    setattr(owner, attribute, wrapped)


@contextmanager
def fault_in_average(fault: Fault, place: str) -> Iterator[None]:
    average = step_module.average_over_processes
    if place.endswith(" average"):
        _wrap(step_module, "average_over_processes", fault, place.partition(" ")[0])
    yield
    step_module.average_over_processes = average


def run(
    accelerator: Accelerator, control_group: ControlGroup, recipe: Recipe, case: dict[str, Any] | None
) -> dict[str, Any]:
    """Run the steps; return losses, gradients, final parameters and buffers, and what the recovery did."""
    torch.manual_seed(0)
    moco = build_moco(recipe)
    _, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
    case = case or {"rank": -1, "place": "before optimizer", "nth": 0, "step": -1}
    fault = Fault(case["nth"], accelerator.process_index == case["rank"])
    install(fault, case["place"], moco, optimizer)
    halvings: list[list[Any]] = []
    recovery = OutOfMemoryRecovery(
        recipe, moco, optimizer, control_group, lambda new, ranks: halvings.append([new.batch.micro_batch_size, ranks])
    )
    losses, gradients, error = [], [], None
    with fault_in_average(fault, case["place"]):
        for step in range(STEPS):
            fault.is_active = step == case["step"]
            views = own_views(recipe, accelerator, step)
            try:
                result = train_step(accelerator, moco, optimizer, views, recovery.recipe, 0.9, recovery)
            except UserError as reason:
                error = str(reason)
                break
            losses.append(result.loss.item())
            gradients.append(moco.gradient_buffer.clone())
    state = [t.double().flatten() for t in moco.state_dict().values()]
    return {
        "losses": torch.tensor(losses),
        "gradient": torch.cat(gradients) if gradients else torch.zeros(0),
        "state": torch.cat(state),
        "halvings": halvings,
        "error": error,
        "was_raised": fault.was_raised,
    }


def relative_difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item() if one.shape == other.shape else float("inf")


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    VIT_SIZES["tiny"] = VitSize(192, 2, 3)  # two blocks: many steps in seconds
    recipe = small_recipe(**json.loads(sys.argv[1]))
    cases = json.loads(sys.stdin.read() if len(sys.argv) < 3 else sys.argv[2])
    accelerator = build_accelerator(recipe, cpu=True)
    control_group = ControlGroup()
    use_control_group(control_group)
    expected = run(accelerator, control_group, recipe, None)
    rows = []
    for case in cases:
        found = run(accelerator, control_group, recipe, case)
        was_raised = control_group.max_over_ranks(found["was_raised"])
        worst = max(relative_difference(found[name], expected[name]) for name in ("losses", "gradient", "state"))
        differs = control_group.max_over_ranks(int(worst > 1e-12))  # on any rank
        row = case | {"worst": worst, "differs": differs, "was_raised": was_raised}
        rows.append(row | {name: found[name] for name in ("halvings", "error")})
    if accelerator.is_main_process:
        print(json.dumps(rows))
    accelerator.end_training()


if __name__ == "__main__":
    main()
