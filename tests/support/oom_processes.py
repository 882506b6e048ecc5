"""One of several gloo processes: steps in which it runs out of memory where it is told to, against undisturbed ones.

Each line of stdin's JSON list is a case: {"rank", "place", "nth", "step"}; prints what became of each.
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
from support.steps import make_views
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.networks.encoders import _VIT_SIZES
from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.processes.control_group import Agreement, meet_through
from moco_accel.training import step as step_module
from moco_accel.training.oom_recovery import Healer
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step

STEPS = 2


class Trap:
    """Raises at the `nth` call (from 0) that passes it while it is set."""

    def __init__(self, nth: int, is_here: bool) -> None:
        self.nth, self.is_here, self.calls, self.is_set, self.has_sprung = nth, is_here, 0, False, False

    def __call__(self, *_: Any) -> None:
        if not self.is_set:
            return
        self.calls += 1
        if self.calls == self.nth + 1 and self.is_here:
            self.has_sprung = True
            raise torch.OutOfMemoryError("CUDA out of memory (as a test has it)")


def lay(trap: Trap, place: str, moco: MoCo, optimizer: Any) -> None:
    """Where the trap lies: a module's forward or backward, or before or after a function."""
    before, _, name = place.partition(" ")
    if name in ("momentum update", "optimizer"):
        owner, attribute = (moco, "update_momentum_side") if name == "momentum update" else (optimizer, "step")
        _wrap(owner, attribute, trap, before)
    elif name == "half the optimizer":
        optimizer.optimizer.step = partial(_change_one, optimizer.optimizer.param_groups[0]["params"][0], trap)
    elif name == "average":
        pass  # laid by the caller, for it is a function of a module
    else:
        module = moco.get_submodule(name)
        if before == "forward":
            module.register_forward_pre_hook(trap)
        else:
            module.register_full_backward_pre_hook(trap)


@torch.no_grad()
def _change_one(parameter: Tensor, trap: Trap, _: None) -> None:
    parameter.add_(1.0)
    trap()


def _wrap(owner: Any, attribute: str, trap: Trap, when: str) -> None:
    function: Callable[..., Any] = getattr(owner, attribute)

    def wrapped(*args: Any) -> Any:
        if when == "before":
            trap()
        result = function(*args)
        if when == "after":
            trap()
        return result

    setattr(owner, attribute, wrapped)


@contextmanager
def average_trapped(trap: Trap, place: str) -> Iterator[None]:
    average = step_module.average_over_processes
    if place.endswith(" average"):
        _wrap(step_module, "average_over_processes", trap, place.partition(" ")[0])
    yield
    step_module.average_over_processes = average


def run(accelerator: Accelerator, agreement: Agreement, sections: Any, case: dict[str, Any] | None) -> dict[str, Any]:
    """Two steps; the second one's gradient, and the parameters and buffers after it."""
    recipe = small_recipe(**sections)
    torch.manual_seed(0)
    moco = build_moco(recipe)
    _, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
    case = case or {"rank": -1, "place": "before optimizer", "nth": 0, "step": -1}
    trap = Trap(case["nth"], accelerator.process_index == case["rank"])
    lay(trap, case["place"], moco, optimizer)
    halvings: list[list[Any]] = []
    healer = Healer(
        recipe, moco, optimizer, agreement, lambda new, ranks: halvings.append([new.batch.micro_batch_size, ranks])
    )
    losses, gradients, error = [], [], None
    with average_trapped(trap, case["place"]):
        for step in range(STEPS):
            trap.is_set = step == case["step"]
            mine = make_views(recipe, step).chunk(accelerator.num_processes, dim=1)[accelerator.process_index]
            views = mine[0].split(recipe.batch.micro_batch_size), mine[1].split(recipe.batch.micro_batch_size)
            try:
                result = train_step(accelerator, moco, optimizer, views, healer.recipe, 0.9, healer)
            except UserError as reason:
                error = str(reason)
                break
            losses.append(result.loss.item())
            gradients.append(moco.gradient.clone())
    state = [t.double().flatten() for t in moco.state_dict().values()]
    return {
        "losses": torch.tensor(losses),
        "gradient": torch.cat(gradients) if gradients else torch.zeros(0),
        "state": torch.cat(state),
        "halvings": halvings,
        "error": error,
        "sprung": trap.has_sprung,
    }


def difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item() if one.shape == other.shape else float("inf")


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    _VIT_SIZES["tiny"] = (192, 2, 3)  # two blocks: many steps in seconds
    sections, cases = json.loads(sys.argv[1]), json.loads(sys.stdin.read() if len(sys.argv) < 3 else sys.argv[2])
    accelerator = build_accelerator(small_recipe(**sections), cpu=True)
    agreement = Agreement()
    meet_through(agreement)
    calm = run(accelerator, agreement, sections, None)
    rows = []
    for case in cases:
        found = run(accelerator, agreement, sections, case)
        sprung = agreement.worst(found["sprung"])
        worst = max(difference(found[name], calm[name]) for name in ("losses", "gradient", "state"))
        apart = agreement.worst(int(worst > 1e-12))  # on any process
        row = case | {"worst": worst, "apart": apart, "sprung": sprung}
        rows.append(row | {name: found[name] for name in ("halvings", "error")})
    if accelerator.is_main_process:
        print(json.dumps(rows))
    accelerator.end_training()


if __name__ == "__main__":
    main()
