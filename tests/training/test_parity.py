"""The step equals a naive implementation of the paper's algorithm, over consecutive steps in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.recipes import small_recipe
from support.reference_moco_v3 import Reference
from support.steps import Training, make_views
from torch import Tensor, nn

from moco_accel.networks.moco import build_moco
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import lr_at, momentum_coefficient_at, set_lr

pytestmark = pytest.mark.usefixtures("float64", "few_blocks")

STEPS, EPOCHS = 6, 3


def parity_recipe(encoder: str, optimizer: str, frozen: bool, momentum_schedule: str, micro: int) -> Recipe:
    return small_recipe(
        encoder={"name": encoder, "image_size": 32, "freeze_patch_projection": frozen},
        moco={"momentum_schedule": momentum_schedule, "predictor_output_norm": encoder.startswith("vit")},
        optimizer={"name": optimizer},
        schedule={"epochs": EPOCHS, "warmup_epochs": 1},
        batch={"micro_batch_size": micro, "accumulation_steps": 8 // micro},
    )


def build_reference(recipe: Recipe) -> Reference:
    torch.manual_seed(0)
    moco = build_moco(recipe)
    return Reference(
        moco.encoder, moco.projector, moco.predictor, moco.momentum_encoder, moco.momentum_projector,
        recipe.optimizer.name, recipe.optimizer.base_lr, recipe.optimizer.weight_decay, recipe.moco.temperature,
        recipe.moco.momentum_coefficient, recipe.moco.momentum_schedule == "cosine", recipe.schedule.epochs,
        recipe.schedule.warmup_epochs,
    )  # fmt: skip


def worst_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest ‖ours − theirs‖ / ‖theirs‖ of a tensor; norms below 1e-3 of the total count as that.

    The gradient of a key bias is 0 in exact arithmetic, and rounding noise has no relative accuracy.
    """
    floor = 1e-3 * torch.cat([t.double().flatten() for t in theirs]).norm()
    pairs = zip(ours, theirs, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm().maximum(floor)) for a, b in pairs)


@pytest.mark.parametrize("momentum_schedule", ["constant", "cosine"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "free"])
@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
@pytest.mark.parametrize(("encoder", "micro"), [("vit_tiny_patch8", 2), ("resnet10", 8)])
def test_every_step_equals_the_paper(
    encoder: str, micro: int, optimizer: str, frozen: bool, momentum_schedule: str
) -> None:
    recipe = parity_recipe(encoder, optimizer, frozen, momentum_schedule, micro)
    reference = build_reference(recipe)
    training = Training(recipe)
    worst: dict[str, float] = {}

    def record(name: str, value: float) -> None:
        worst[name] = max(worst.get(name, 0.0), value)

    for step in range(STEPS):
        epoch = step * EPOCHS / STEPS
        lr, coefficient = lr_at(recipe, epoch), momentum_coefficient_at(recipe, epoch)
        assert lr == pytest.approx(reference.lr(epoch, 8), rel=1e-14)
        assert coefficient == pytest.approx(reference.coefficient(epoch), rel=1e-14)
        views = make_views(recipe, step)
        expected = reference.step(*views, epoch)
        set_lr(training.optimizer, lr)
        result = training.step(views, coefficient)
        record("loss", abs(result.loss.item() / expected - 1))
        for name in ("encoder", "projector", "predictor", "momentum_encoder", "momentum_projector"):
            compare(getattr(training.moco, name), getattr(reference, name), record)
    assert max(worst.values()) <= 1e-10, worst  # worst measured: parameter 4e-12, gradient 4e-14, loss 3e-15


def compare(ours: nn.Module, theirs: nn.Module, record: Callable[[str, float], None]) -> None:
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    record("parameter", worst_difference([p.detach() for p, _ in pairs], [q.detach() for _, q in pairs]))
    assert all((p.grad is None) == (q.grad is None) for p, q in pairs)
    graded = [(p.grad, q.grad) for p, q in pairs if p.grad is not None and q.grad is not None]
    if graded:
        record("gradient", worst_difference([g for g, _ in graded], [h for _, h in graded]))
    if any(True for _ in ours.buffers()):
        record("buffer", worst_difference(list(ours.buffers()), list(theirs.buffers())))
