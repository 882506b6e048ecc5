"""Recipes to trace, and the peak memory of their real steps on the CPU."""

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
from moco_accel.views.augment import AugmentedView
from moco_accel.views.crops import CropBatch, crop_dtype
from moco_accel.views.parameters import worst_case_photometry

VIT = {"name": "vit_tiny_patch16", "image_size": 64}
RESNET = {"name": "resnet18", "image_size": 64, "freeze_patch_projection": False}
HEADS = {"projector_hidden_dim": 256, "output_dim": 64}
# Scratch memory of CPU kernels that CUDA kernels do not allocate: oneDNN's workspace (here up to 4 times a weight's
# gradient), and bitsandbytes' 8-bit update, which is several fp32 operations here and a single kernel on CUDA.
CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::slow_conv2d_forward")
_CPU_SCRATCH = (*CONVOLUTIONS, "bitsandbytes::optimizer_update_8bit_blockwise")
_PREPARED = "prepared"


def batch(micro_batch_size: int, accumulation_steps: int, **more: object) -> dict[str, object]:
    sizes = {"micro_batch_size": micro_batch_size, "accumulation_steps": accumulation_steps}
    return {"global_batch_size": micro_batch_size * accumulation_steps, **sizes, **more}


def measured_peak_bytes(recipe: Recipe, steps: int = 2, step: Callable[..., StepResult] = train_step) -> int:
    """Return the peak of allocated bytes in `steps` real steps, preparation included."""
    tiles, size = recipe.batch.micro_batch_size, recipe.encoder.image_size
    pixels = torch.zeros(tiles, recipe.encoder.bands, size, size, dtype=crop_dtype(recipe))
    crops = CropBatch(pixels, [worst_case_photometry(recipe)] * tiles, list(range(tiles)))
    accelerator = build_accelerator(recipe, cpu=True)
    gc.collect()  # garbage of earlier tests, freed inside, would count as negative
    with profile(profile_memory=True, acc_events=True) as profiler:
        moco = build_moco(recipe)
        model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
        with record_function(_PREPARED):
            pass
        # augmented as on a GPU, all tiles at once, which is what is traced
        first, second = (
            AugmentedView([crops] * recipe.batch.accumulation_steps, recipe, torch.device("cpu"), on_gpu=True)
            for _ in range(2)
        )
        for _ in range(steps):
            step(accelerator, model, optimizer, (first, second), recipe, 0.99)
    events = profiler.profiler.kineto_results.events()
    scratch = [(e.start_ns(), e.end_ns()) for e in events if e.name() in _CPU_SCRATCH]
    since = next(e.start_ns() for e in events if e.name() == _PREPARED)
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return peak_without_scratch(changes, scratch, since)


def peak_without_scratch(changes: list[tuple[int, int]], operations: list[tuple[int, int]], since: int = 0) -> int:
    """Return the peak of `changes` (time, bytes) from `since` on, without what `operations` (start, end) also free."""
    starts = sorted(operations)
    pending: dict[int, list[tuple[int, int]]] = {}
    allocated = peak = 0
    for time, size in sorted(changes):
        index = bisect.bisect_right(starts, (time, 2**63)) - 1
        inside = index >= 0 and time <= starts[index][1]
        if inside:
            pending.setdefault(index, []).append((time, size))
            continue
        for held in pending.values():
            allocated += sum(size for _, size in held)
        pending.clear()
        allocated += size
        peak = max(peak, allocated, allocated - size) if time >= since else 0
    return peak
