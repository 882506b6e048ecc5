"""The paper's step with both views at once: the same numbers as the trainer's step, and more memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.recipes import small_recipe
from support.steps import all_gradients, make_views
from support.traces import HEADS, RESNET, VIT, batch, measured_peak_bytes
from torch import Tensor

from moco_accel.networks.moco import build_moco
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step
from planner.memory.allocator import replay
from planner.trace.trace import both_views_step, trace_step


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "sections",
    [{}, {"moco": {"queue_size": 16}}, {"encoder": {"name": "resnet10", "image_size": 32}, "batch": batch(8, 1)}],
    ids=["vit", "queue", "resnet"],
)
def test_both_views_at_once_give_the_trainers_step(sections: dict[str, Any]) -> None:
    recipe = small_recipe(**sections)

    def run(step: Any) -> tuple[list[float], Tensor, Tensor]:
        torch.manual_seed(0)
        accelerator = build_accelerator(recipe, cpu=True)
        moco = build_moco(recipe)
        model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
        losses = []
        for seed in range(3):
            first, second = (view.split(recipe.batch.micro_batch_size) for view in make_views(recipe, seed))
            losses.append(step(accelerator, model, optimizer, (first, second), recipe, 0.9).loss.item())
        return losses, all_gradients(moco), moco.queue

    (losses, gradients, queue), (expected, expected_gradients, expected_queue) = run(both_views_step), run(train_step)
    assert losses == pytest.approx(expected, rel=1e-12)
    assert (gradients - expected_gradients).norm() / expected_gradients.norm() < 1e-10
    torch.testing.assert_close(queue, expected_queue, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("encoder", [VIT, RESNET], ids=lambda encoder: encoder["name"])
def test_traced_peak_equals_the_real_one_and_exceeds_the_trainers(encoder: dict[str, Any]) -> None:
    recipe = small_recipe(moco=HEADS, encoder=encoder, batch=batch(32, 1))
    traced = replay(trace_step(recipe, None, steps=2, step=both_views_step).events).peak_requested_bytes
    measured = measured_peak_bytes(recipe, step=both_views_step)
    print(f"traced {traced:,} measured {measured:,} {traced / measured - 1:+.2%}")
    assert traced == pytest.approx(measured, rel=0.02)
    assert replay(trace_step(recipe, None, steps=2).events).peak_requested_bytes < 0.9 * traced
