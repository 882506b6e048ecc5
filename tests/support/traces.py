"""Steps to trace, and their real peak on the CPU."""

from __future__ import annotations

import bisect
import gc
from collections.abc import Callable

import torch
from torch.profiler import profile, record_function

from moco_accel.networks.moco import build_moco
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import StepResult, build_accelerator, prepare, train_step
from moco_accel.views.augment import AugmentedView, CropBatch, crop_dtype, heaviest_photometry

VIT = {"name": "vit_tiny_patch16", "image_size": 64}


RESNET = {"name": "resnet18", "image_size": 64, "freeze_patch_projection": False}


# what these both take and give back is the CPU's own, and no CUDA kernel has it: oneDNN's workspace (here up to 4 times
# a weight's gradient), and bitsandbytes' 8-bit update in fp32, step by step, which is a single kernel on CUDA
CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::slow_conv2d_forward")


HEADS = {"projector_hidden_dim": 256, "output_dim": 64}


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


OWN_SCRATCH = (*CONVOLUTIONS, "bitsandbytes::optimizer_update_8bit_blockwise")


PREPARED = "prepared"
