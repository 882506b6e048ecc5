"""Optimizers and schedules against hand-computed values."""

from __future__ import annotations

import pytest
import torch
from support.recipes import small_recipe
from torch import nn

from moco_accel.networks.moco import build_moco
from moco_accel.training.optimizers import LARS, build_optimizer, lr_at, momentum_coefficient_at


def paper_recipe(**moco: object) -> object:
    return small_recipe(
        batch={"global_batch_size": 4096, "micro_batch_size": 256, "accumulation_steps": 16},
        schedule={"epochs": 300, "warmup_epochs": 40},
        moco=moco,
    )


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [
        (0, 0.0),
        (10, 6e-4),
        (39.5, 2.37e-3),
        (40, 2.4e-3),
        (170, 1.2e-3),
        (105, 2.4e-3 * 0.8535533906),
        # the last of 244 steps of the last epoch (1,000,000 tiles): ½ · lr · (π / (260 · 244))² / 2
        (299 + 243 / 244, 1.4713e-12),
        (300, 0.0),
    ],
)
def test_lr_equals_hand_computed_values(epoch: float, lr: float) -> None:
    assert lr_at(paper_recipe(), epoch) == pytest.approx(lr, rel=1e-4 if epoch > 299 else 1e-9, abs=1e-18)


def test_warmup_may_be_shorter_than_an_epoch() -> None:
    recipe = small_recipe(schedule={"epochs": 1, "warmup_epochs": 0.5})
    assert lr_at(recipe, 0.25) == pytest.approx(recipe.optimizer.lr / 2)
    assert lr_at(recipe, 0.75) == pytest.approx(recipe.optimizer.lr / 2)
    assert lr_at(recipe, 1) == pytest.approx(0)


@pytest.mark.parametrize(("epoch", "coefficient"), [(0, 0.99), (150, 0.995), (75, 0.9914644661), (300, 1.0)])
def test_momentum_coefficient_equals_hand_computed_values(epoch: float, coefficient: float) -> None:
    cosine = paper_recipe(momentum_schedule="cosine")
    assert momentum_coefficient_at(cosine, epoch) == pytest.approx(coefficient, rel=1e-9)
    assert momentum_coefficient_at(paper_recipe(), epoch) == 0.99


def test_lars_equals_hand_computed_values() -> None:
    matrix, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS([matrix, bias], lr=0.1, weight_decay=0.5)
    matrix.grad, bias.grad = torch.tensor([[-1.5, 1.0]]), torch.tensor([2.0])
    optimizer.step()
    # g + wd p = (0, 3), scaled by .001 · 5 / 3 = (0, .005); the bias gets neither
    torch.testing.assert_close(matrix.data, torch.tensor([[3.0, 4.0 - 0.1 * 0.005]]))
    torch.testing.assert_close(bias.data, torch.tensor([0.8]))
    optimizer.step()
    # 0.9 of the velocity stays
    torch.testing.assert_close(bias.data, torch.tensor([0.8 - 0.1 * (0.9 * 2 + 2)]))


def test_lars_uses_the_plain_gradient_for_a_zero_parameter() -> None:
    zero = nn.Parameter(torch.zeros(1, 2))
    optimizer = LARS([zero], lr=1.0, weight_decay=0.5)
    zero.grad = torch.ones(1, 2)
    optimizer.step()
    assert zero.tolist() == [[-1.0, -1.0]]


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "lars"])
def test_only_trainable_parameters_are_updated(name: str) -> None:
    recipe = small_recipe(optimizer={"name": name})
    moco = build_moco(recipe)
    optimizer = build_optimizer(recipe, moco)
    before = [parameter.detach().clone() for parameter in moco.parameters()]
    for parameter in moco.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter, old in zip(moco.parameters(), before, strict=True):
        assert torch.equal(parameter, old) != parameter.requires_grad


def test_adamw_8bit_stores_two_bytes_per_parameter_and_follows_adamw() -> None:
    recipe = small_recipe(optimizer={"name": "adamw_8bit"})
    torch.manual_seed(0)
    start = torch.randn(64, 64)
    eight, full = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = (
        build_optimizer(recipe, nn.ParameterList([eight])),
        torch.optim.AdamW([full], lr=recipe.optimizer.lr, weight_decay=0.1),
    )
    for _ in range(20):
        gradient = torch.randn(64, 64) + 1
        for parameter, optimizer in zip((eight, full), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    state = optimizers[0].state[eight]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
    moved = (full - start).norm()
    assert (eight - full).norm() / moved < 0.1
