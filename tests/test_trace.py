"""The trace against the real step on the CPU, by torch.profiler's own account of allocated bytes."""

from __future__ import annotations

import bisect
import gc
from collections.abc import Callable

import pytest
import torch
from conftest import small_recipe
from torch.profiler import profile, record_function

from moco_accel.augment import AugmentedView, CropBatch, crop_dtype, heaviest_photometry
from moco_accel.moco import build_moco
from moco_accel.optim import build_optimizer
from moco_accel.recipe import Recipe
from moco_accel.step import StepResult, build_accelerator, prepare, train_step
from planner.allocator import replay
from planner.fake_processes import fresh_accelerate
from planner.trace import trace_step

VIT = {"name": "vit_tiny_patch16", "image_size": 64}
RESNET = {"name": "resnet18", "image_size": 64, "freeze_patch_projection": False}
RESNET10 = RESNET | {"name": "resnet10"}
BANDS, STATISTICS = {"bands": 13}, {"mean": [0.4] * 13, "std": [0.2] * 13}
# what these both take and give back is the CPU's own, and no CUDA kernel has it: oneDNN's workspace (here up to 4 times
# a weight's gradient), and bitsandbytes' 8-bit update in fp32, step by step, which is a single kernel on CUDA
CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::slow_conv2d_forward")
OWN_SCRATCH = (*CONVOLUTIONS, "bitsandbytes::optimizer_update_8bit_blockwise")
HEADS = {"projector_hidden_dim": 256, "output_dim": 64}
PREPARED = "prepared"


def batch(micro_batch_size: int, accumulation_steps: int, **more: object) -> dict[str, object]:
    sizes = {"micro_batch_size": micro_batch_size, "accumulation_steps": accumulation_steps}
    return {"global_batch_size": micro_batch_size * accumulation_steps, **sizes, **more}


def measured_peak_bytes(recipe: Recipe, steps: int = 2, step: Callable[..., StepResult] = train_step) -> int:
    """Most bytes allocated at once in `steps` real steps, what was prepared before included."""
    tiles, size = recipe.batch.micro_batch_size, recipe.encoder.image_size
    pixels = torch.zeros(tiles, recipe.encoder.bands, size, size, dtype=crop_dtype(recipe))
    crops = CropBatch(pixels, [heaviest_photometry(recipe)] * tiles, list(range(tiles)))
    accelerator = build_accelerator(recipe, cpu=True)
    gc.collect()  # what earlier tests left would be freed inside, and counted as less than nothing
    with profile(profile_memory=True, acc_events=True) as profiler:
        moco = build_moco(recipe)
        model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
        with record_function(PREPARED):
            pass
        # augmented as on a GPU, all tiles at once: that is what is traced
        first, second = (
            AugmentedView([crops] * recipe.batch.accumulation_steps, recipe, torch.device("cpu"), on_gpu=True)
            for _ in range(2)
        )
        for _ in range(steps):
            step(accelerator, model, optimizer, (first, second), recipe, 0.99)
    events = profiler.profiler.kineto_results.events()
    scratch = [(e.start_ns(), e.end_ns()) for e in events if e.name() in OWN_SCRATCH]
    since = next(e.start_ns() for e in events if e.name() == PREPARED)
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return _peak_without_scratch(changes, scratch, since)


def _peak_without_scratch(changes: list[tuple[int, int]], operations: list[tuple[int, int]], since: int = 0) -> int:
    """Peak of `changes` (time, bytes) from `since` on, less what one of `operations` (start, end) has all to itself."""
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
        allocated += size
        peak = max(peak, allocated, allocated - size) if time >= since else 0
    return peak


BF16, CHECKPOINTED = {"mixed_precision": "bf16"}, {"activation_checkpointing": True}
CONFIGURATIONS: dict[str, dict[str, dict[str, object]]] = {
    "vit": {"encoder": VIT, "batch": batch(32, 1)},
    "vit_two": {"encoder": VIT, "batch": batch(16, 2)},
    "vit_plain": {"encoder": VIT, "batch": batch(16, 2, contrast_over="micro_batch")},
    "vit_checkpointed": {"encoder": VIT, "batch": batch(32, 1), "memory": CHECKPOINTED},
    "vit_two_checkpointed": {"encoder": VIT, "batch": batch(16, 2), "memory": CHECKPOINTED},
    "vit_bf16": {"encoder": VIT, "batch": batch(32, 1), "memory": BF16},
    "vit_bf16_two": {"encoder": VIT, "batch": batch(16, 2), "memory": BF16},
    "vit_bf16_checkpointed": {"encoder": VIT, "batch": batch(16, 1), "memory": BF16 | CHECKPOINTED},
    "vit_8bit": {"encoder": VIT, "batch": batch(16, 1), "optimizer": {"name": "adamw_8bit"}},
    "vit_free_projection": {"encoder": VIT | {"freeze_patch_projection": False}, "batch": batch(16, 1)},
    "vit_13_bands": {"encoder": VIT | BANDS, "batch": batch(16, 1), "data": STATISTICS},
    "resnet10_four": {"encoder": RESNET10, "batch": batch(8, 4)},
    "resnet10_four_8bit": {"encoder": RESNET10, "batch": batch(8, 4), "optimizer": {"name": "adamw_8bit"}},
    "resnet10_queue": {"encoder": RESNET10, "batch": batch(8, 2), "moco": {"queue_size": 8192}},
    "resnet10_plain_queue": {
        "encoder": RESNET10,
        "batch": batch(16, 2, contrast_over="micro_batch"),
        "moco": {"queue_size": 8192},
    },
    "resnet10_uneven_heads": {
        "encoder": RESNET10,
        "batch": batch(16, 2),
        "moco": {"projector_hidden_dim": 1001, "output_dim": 37, "predictor_output_norm": False},
    },
    "resnet10_13_bands": {"encoder": RESNET10 | BANDS, "batch": batch(8, 2), "data": STATISTICS},
    "resnet18": {"encoder": RESNET, "batch": batch(16, 1)},
    "resnet18_two_lars": {"encoder": RESNET, "batch": batch(8, 2), "optimizer": {"name": "lars"}},
    "resnet18_two_checkpointed": {"encoder": RESNET, "batch": batch(8, 2), "memory": CHECKPOINTED},
    "resnet18_bf16": {"encoder": RESNET, "batch": batch(8, 2), "memory": BF16},
    "resnet50_lars": {"encoder": RESNET | {"name": "resnet50"}, "batch": batch(8, 1), "optimizer": {"name": "lars"}},
}
SHARDED = {"fully_shard": True, "keep_last_micro_batch": False}
TWO: dict[str, dict[str, object]] = {"hardware": {"num_devices": 2}, "batch": batch(16, 2, global_batch_size=64)}
CONFIGURATIONS |= {
    "vit_of_two_processes": {"encoder": VIT, **TWO},
    "vit_sharded": {"encoder": VIT, **TWO, "memory": SHARDED},
    "vit_sharded_checkpointed": {"encoder": VIT, **TWO, "memory": SHARDED | CHECKPOINTED},
    "vit_sharded_8bit": {"encoder": VIT, **TWO, "memory": SHARDED | CHECKPOINTED, "optimizer": {"name": "adamw_8bit"}},
    "vit_sharded_bf16": {"encoder": VIT, **TWO, "memory": SHARDED | BF16},
}


# each differs from some other one in a single thing, and together they take a minute
SLOW = ("vit_13_bands", "vit_bf16_checkpointed", "resnet18_two_checkpointed")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CONFIGURATIONS])
def test_traced_peak_is_that_of_the_real_step(name: str) -> None:
    sections = CONFIGURATIONS[name]
    recipe = small_recipe(**{**sections, "moco": HEADS | sections.get("moco", {})})
    traced = replay(trace_step(recipe, None, steps=2).events).peak_requested_bytes
    # of several processes one, in a group that sends nothing: gloo's copies are not NCCL's
    with fresh_accelerate(recipe.hardware.num_devices):
        measured = measured_peak_bytes(recipe)
    print(f"traced {traced:,} measured {measured:,} {traced / measured - 1:+.2%}")
    assert traced == pytest.approx(measured, rel=0.02)
