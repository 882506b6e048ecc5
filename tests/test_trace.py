"""The trace against the real step on the CPU, by torch.profiler's own account of allocated bytes."""

from __future__ import annotations

import bisect
import gc
from collections.abc import Callable

import pytest
import torch
from conftest import small_recipe
from torch.profiler import profile

from moco_accel.augment import AugmentedView, CropBatch, make_crop, stack_crops
from moco_accel.moco import build_moco
from moco_accel.optim import build_optimizer
from moco_accel.recipe import Recipe
from moco_accel.step import StepResult, build_accelerator, train_step
from planner.allocator import replay
from planner.trace import trace_step

VIT = {"name": "vit_tiny_patch16", "image_size": 64}
RESNET = {"name": "resnet18", "image_size": 64, "freeze_patch_projection": False}
# what a convolution both takes and gives back is its library's
CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::slow_conv2d_forward")
HEADS = {"projector_hidden_dim": 256, "output_dim": 64}


def batch(micro_batch_size: int, accumulation_steps: int, **more: object) -> dict[str, object]:
    sizes = {"micro_batch_size": micro_batch_size, "accumulation_steps": accumulation_steps}
    return {"global_batch_size": micro_batch_size * accumulation_steps, **sizes, **more}


def measured_peak_bytes(recipe: Recipe, steps: int = 2, step: Callable[..., StepResult] = train_step) -> int:
    """Most bytes allocated at once in `steps` real steps, the networks and the optimizer included."""
    tiles, size = recipe.batch.micro_batch_size, recipe.encoder.image_size
    crop = make_crop(torch.zeros(3, size, size, dtype=torch.uint8), recipe, 0, 0, 0)
    photometry = stack_crops([crop]).photometry.expand(tiles, -1)
    crops = CropBatch(torch.zeros(tiles, 3, size, size, dtype=torch.uint8), photometry, list(range(tiles)))
    accelerator = build_accelerator(recipe, cpu=True)
    gc.collect()  # what earlier tests left would be freed inside, and counted as less than nothing
    with profile(profile_memory=True) as profiler:
        moco = build_moco(recipe)
        model, optimizer = accelerator.prepare(moco, build_optimizer(recipe, moco))
        first, second = (AugmentedView([crops] * recipe.batch.accumulation_steps, recipe, torch.device("cpu"))
                         for _ in range(2))  # fmt: skip
        for _ in range(steps):
            step(accelerator, model, optimizer, (first, second), recipe, 0.99)
    events = profiler.profiler.kineto_results.events()
    scratch = [(e.start_ns(), e.end_ns()) for e in events if e.name() in CONVOLUTIONS]
    return _peak_without_scratch([(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"], scratch)


def _peak_without_scratch(changes: list[tuple[int, int]], operations: list[tuple[int, int]]) -> int:
    """Running peak of `changes` (time, bytes) less what one of `operations` (start, end) both takes and gives back.

    That is oneDNN's own workspace (here up to 4 times a weight's gradient), which no CUDA kernel has.
    """
    starts = sorted(operations)
    pending: dict[int, list[tuple[int, int]]] = {}
    allocated = peak = 0
    for time, size in sorted(changes):
        place = bisect.bisect_right(starts, (time, 2**63)) - 1
        inside = place >= 0 and time <= starts[place][1]
        if inside:
            pending.setdefault(place, []).append((time, size))
            continue
        for held in pending.values():
            allocated += sum(size for _, size in held)
        pending.clear()
        peak = max(peak, allocated)
        allocated += size
        peak = max(peak, allocated)
    return peak


@pytest.mark.parametrize(
    "sections",
    [
        {"encoder": VIT, "batch": batch(32, 1)},
        {"encoder": VIT, "batch": batch(16, 4)},
        {"encoder": VIT, "batch": batch(16, 4, contrast_over="micro_batch")},
        {"encoder": VIT, "batch": batch(16, 4), "memory": {"activation_checkpointing": True}},
        {"encoder": VIT, "batch": batch(16, 2), "memory": {"mixed_precision": "bf16"}},
        {"encoder": VIT, "batch": batch(16, 2), "optimizer": {"name": "adamw_8bit"}},
        {"encoder": RESNET, "batch": batch(32, 1)},
        {"encoder": RESNET, "batch": batch(16, 4), "optimizer": {"name": "lars"}},
    ],
    ids=["whole", "micro", "plain", "checkpointed", "bf16", "8bit", "resnet", "resnet_micro_lars"],
)
def test_traced_peak_is_that_of_the_real_step(sections: dict[str, dict[str, object]]) -> None:
    recipe = small_recipe(moco=HEADS, **sections)
    traced = replay(trace_step(recipe, None, steps=2).events).peak_requested_bytes
    measured = measured_peak_bytes(recipe)
    print(f"traced {traced:,} measured {measured:,} {traced / measured - 1:+.2%}")
    assert traced == pytest.approx(measured, rel=0.02)
