"""The same step on a real GPU: predicted beside measured.

One card stands for one of several: in a process group of the recipe's size that sends nothing, all gradients and the
gathered keys have their true sizes (NCCL's own buffers are missing).
"""

from __future__ import annotations

import gc
import random
import shutil
import statistics
import subprocess
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from moco_accel.common.errors import UserError
from moco_accel.networks.moco import build_moco
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step
from moco_accel.views.augment import AugmentedView, Crop, CropBatch, Geometry, crop_dtype, draw_photometry, stack_crops
from planner.memory.evidence import append_row, measured_path, read_rows
from planner.trace.fake_processes import fresh_accelerate

NO_GPU = "--measure needs a GPU and torch sees none here; leave --measure out for a prediction"


@dataclass(frozen=True)
class StepRun:
    """One optimizer step as it ran: wall-clock seconds, its loss, and whether fp16 overflowed."""

    seconds: float
    loss: float
    skipped: bool


@dataclass(frozen=True)
class Measured:
    """What a recipe's steps took on one GPU, in bytes.

    `device_used_bytes` is all that is in use on the card after the steps, other processes' included. `retries`: how
    often the allocator had to give back what it had cached; `expandable_segments`: whether it had such.
    `seconds_per_step` is the median of all steps but the first, `tiles_per_second` that of all the recipe's devices if
    each were as fast and nothing had to be sent.
    """

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    device_used_bytes: int
    total_bytes: int
    retries: int
    skipped_steps: int
    seconds_per_step: float
    tiles_per_second: float
    gpu: str
    compute_capability: int
    driver: str
    torch: str
    cuda: str
    cudnn: str
    transformers: str
    accelerate: str
    expandable_segments: bool


def measure(recipe: Recipe, steps: int = 3) -> Measured:
    """Run `steps` optimizer steps of `recipe` on the first GPU and read the allocator's and the card's own figures.

    The allocator is set as the recipe says, which the trainer does by a variable that torch reads once.
    Raises UserError without a GPU and torch.OutOfMemoryError where the card is too small.
    """
    if not torch.cuda.is_available():
        raise UserError(NO_GPU)
    device = torch.device("cuda", 0)
    torch.cuda.init()  # the statistics are there from then on
    _free()
    expandable = recipe.memory.expandable_segments
    torch._C._accelerator_setAllocatorSettings(f"expandable_segments:{expandable}")
    torch.cuda.reset_peak_memory_stats(device)
    retries_before = _retries(device)
    try:
        runs = run_steps(recipe, device, steps)
        return _read(recipe, device, runs, _retries(device) - retries_before)
    finally:
        _free()


def run_steps(recipe: Recipe, device: torch.device, steps: int) -> list[StepRun]:
    """Build what `recipe` names as the trainer does and run its step on random crops; one process of the recipe's."""
    runs = []
    with fresh_accelerate(recipe.hardware.num_devices), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the trainer's own launch shows the trainer's
        accelerator = build_accelerator(recipe, cpu=device.type == "cpu")
        assert accelerator.device.type == device.type, f"{accelerator.device} is not {device}"
        torch.manual_seed(recipe.run.seed)
        moco = build_moco(recipe)
        model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
        first, second = (_waiting(host_crops(recipe, view), recipe, device) for view in (0, 1))
        for _ in range(steps):
            begun = _now(device)
            views = (
                AugmentedView(first, recipe, accelerator.device),
                AugmentedView(second, recipe, accelerator.device),
            )
            result = train_step(accelerator, model, optimizer, views, recipe, recipe.moco.momentum_coefficient)
            del views  # as in the trainer's loop
            runs.append(StepRun(_now(device) - begun, result.loss.item(), result.skipped))
    return runs


def host_crops(recipe: Recipe, view: int) -> CropBatch:
    """One micro-batch of view 0 or 1 on the host: random pixels, photometry drawn as the recipe says."""
    tiles, bands, size = recipe.batch.micro_batch_size, recipe.encoder.bands, recipe.encoder.image_size
    generator, draw = torch.Generator().manual_seed(view), random.Random(view)
    pixels = torch.randint(0, 256, (tiles, bands, size, size), dtype=torch.uint8, generator=generator)
    if crop_dtype(recipe) != torch.uint8:
        pixels = pixels.to(crop_dtype(recipe)) / 255
    whole = Geometry(0, 0, size, size, 0, False, False)
    drawn = [(draw_photometry(draw, recipe.augment, view, size, bands), draw.getrandbits(63)) for _ in pixels]
    return stack_crops([Crop(tile, whole, *numbers) for tile, numbers in zip(pixels, drawn, strict=True)])


def as_row(measured: Measured, recipe: Recipe, predicted_bytes: Mapping[str, int]) -> dict[str, Any]:
    """What one measurement says, as JSON. `predicted_bytes` has `peak_reserved` and `peak_allocated`.

    `ratio` is predicted to measured, of reserved bytes.
    """
    return {
        "recipe": recipe_fields(recipe),
        "predicted_bytes": {name: predicted_bytes[name] for name in ("peak_reserved", "peak_allocated")},
        "measured": asdict(measured),
        "ratio": predicted_bytes["peak_reserved"] / measured.peak_reserved_bytes,
    }


def recipe_fields(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides memory and speed."""
    whole = dict.fromkeys(("encoder", "moco", "batch", "memory"), True)
    return recipe.model_dump(include={**whole, "optimizer": {"name"}, "hardware": {"num_devices"}})


def remember(measured: Measured, recipe: Recipe, predicted_bytes: Mapping[str, int], path: Path | None = None) -> None:
    """Add `as_row(…)` to what was measured on this machine before, at `path` or in the user's cache."""
    append_row(path or measured_path(), as_row(measured, recipe, predicted_bytes))


def remembered(path: Path | None = None) -> list[dict[str, Any]]:
    """All rows that `remember` wrote, oldest first. Raises UserError, see `read_rows`."""
    return read_rows(path or measured_path())


def _waiting(crops: CropBatch, recipe: Recipe, device: torch.device) -> list[CropBatch]:
    """One view's micro-batches as the loader hands them over, all of them the same tiles."""
    return [crops.pin_memory() if device.type == "cuda" else crops] * recipe.batch.accumulation_steps


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _free() -> None:
    gc.collect()  # the accelerator and what it prepared hold each other in cycles
    torch.cuda.empty_cache()


def _retries(device: torch.device) -> int:
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))


def _read(recipe: Recipe, device: torch.device, runs: list[StepRun], retries: int) -> Measured:
    free, total = torch.cuda.mem_get_info(device)
    seconds = statistics.median(run.seconds for run in runs[1:] or runs)
    major, minor = torch.cuda.get_device_capability(device)
    return Measured(
        peak_allocated_bytes=torch.cuda.max_memory_allocated(device),
        peak_reserved_bytes=torch.cuda.max_memory_reserved(device),
        device_used_bytes=total - free,
        total_bytes=total,
        retries=retries,
        skipped_steps=sum(run.skipped for run in runs),
        seconds_per_step=seconds,
        tiles_per_second=recipe.batch.global_batch_size / seconds,
        gpu=torch.cuda.get_device_name(device),
        compute_capability=10 * major + minor,
        driver=_driver(),
        torch=str(torch.__version__),
        cuda=str(torch.version.cuda),
        cudnn=str(torch.backends.cudnn.version()),
        transformers=version("transformers"),
        accelerate=version("accelerate"),
        expandable_segments=any(
            segment["is_expandable"] for segment in torch.cuda.memory_snapshot(include_traces=False)
        ),
    )


def _driver() -> str:
    """The driver's version, which torch doesn't know; `unknown` where nvidia-smi is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no input in it
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else "unknown"
