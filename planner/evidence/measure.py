"""Run a recipe's step on a real GPU and measure its memory and speed.

One GPU stands for one of several: in a process group of the recipe's size that sends nothing, the gradients and the
gathered keys have their true sizes. NCCL's buffers are missing.
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
from typing import Any

import torch

from moco_accel.common.errors import UserError
from moco_accel.networks.moco import build_moco
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step
from moco_accel.views.augment import AugmentedView
from moco_accel.views.crops import Crop, CropBatch, crop_dtype, stack_crops
from moco_accel.views.parameters import Geometry, draw_photometry
from planner.trace.fake_processes import fresh_accelerate

NO_GPU = "--measure needs a GPU, but torch finds none; omit --measure for a prediction"


@dataclass(frozen=True)
class StepRun:
    """One optimizer step: wall-clock seconds, loss, and whether it was skipped because fp16 overflowed."""

    seconds: float
    loss: float
    skipped: bool


@dataclass(frozen=True)
class Measurement:
    """Memory in bytes and speed of a recipe's steps on one GPU.

    Attributes:
        device_used_bytes: Memory in use on the card after the steps, including other processes.
        retries: How often the allocator freed cached blocks to serve a request.
        seconds_per_step: Median over all steps but the first.
        tiles_per_second: Tiles of all the recipe's devices, if each were as fast and communication cost nothing.
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


def measure(recipe: Recipe, steps: int = 3) -> Measurement:
    """Run `steps` optimizer steps of `recipe` on the first GPU and return the figures of the allocator and the card.

    The allocator has the recipe's settings. (The trainer sets them with an environment variable that torch reads once.)

    Raises:
        UserError: If there is no GPU.
        torch.OutOfMemoryError: If the card is too small.
    """
    if not torch.cuda.is_available():
        raise UserError(NO_GPU)
    device = torch.device("cuda", 0)
    torch.cuda.init()  # the allocator has no statistics before
    _free_memory()
    expandable = recipe.memory.expandable_segments
    torch._C._accelerator_setAllocatorSettings(f"expandable_segments:{expandable}")
    torch.cuda.reset_peak_memory_stats(device)
    retries_before = _retries(device)
    try:
        runs = run_steps(recipe, device, steps)
        return _collect(recipe, device, runs, _retries(device) - retries_before)
    finally:
        _free_memory()


def run_steps(recipe: Recipe, device: torch.device, steps: int) -> list[StepRun]:
    """Build the recipe's objects as the trainer does and run its step on random crops, as one of its processes."""
    runs = []
    with fresh_accelerate(recipe.hardware.num_devices), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # a run shows the trainer's own warnings
        accelerator = build_accelerator(recipe, cpu=device.type == "cpu")
        assert accelerator.device.type == device.type, f"{accelerator.device} is not {device}"
        torch.manual_seed(recipe.run.seed)
        moco = build_moco(recipe)
        model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
        crops = [_micro_batches(random_crops(recipe, view), recipe, device) for view in (0, 1)]
        for _ in range(steps):
            start = _now(device)
            first, second = (AugmentedView(batches, recipe, accelerator.device) for batches in crops)
            coefficient = recipe.moco.momentum_coefficient
            result = train_step(accelerator, model, optimizer, (first, second), recipe, coefficient)
            del first, second  # as in the trainer's loop
            runs.append(StepRun(_now(device) - start, result.loss.item(), result.skipped))
    return runs


def random_crops(recipe: Recipe, view: int) -> CropBatch:
    """Return one micro-batch of view 0 or 1 on the host: random pixels, with photometry drawn as the recipe defines."""
    tiles, bands, size = recipe.batch.micro_batch_size, recipe.encoder.bands, recipe.encoder.image_size
    generator, draw = torch.Generator().manual_seed(view), random.Random(view)
    pixels = torch.randint(0, 256, (tiles, bands, size, size), dtype=torch.uint8, generator=generator)
    if crop_dtype(recipe) != torch.uint8:
        pixels = pixels.to(crop_dtype(recipe)) / 255
    whole = Geometry(0, 0, size, size, 0, False, False)
    drawn = [(draw_photometry(draw, recipe.augment, view, size, bands), draw.getrandbits(63)) for _ in pixels]
    return stack_crops([Crop(tile, whole, *numbers) for tile, numbers in zip(pixels, drawn, strict=True)])


def measurement_row(measured: Measurement, recipe: Recipe, predicted_bytes: Mapping[str, int]) -> dict[str, Any]:
    """Return a measurement as a row of JSON with the predicted `peak_reserved` and `peak_allocated`.

    The row's `ratio` is predicted ÷ measured reserved bytes.
    """
    return {
        "recipe": recipe_fields(recipe),
        "predicted_bytes": {name: predicted_bytes[name] for name in ("peak_reserved", "peak_allocated")},
        "measured": asdict(measured),
        "ratio": predicted_bytes["peak_reserved"] / measured.peak_reserved_bytes,
    }


def recipe_fields(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe that determine memory and speed."""
    whole = dict.fromkeys(("encoder", "moco", "batch", "memory"), True)
    return recipe.model_dump(include={**whole, "optimizer": {"name"}, "hardware": {"num_devices"}})


def _micro_batches(crops: CropBatch, recipe: Recipe, device: torch.device) -> list[CropBatch]:
    """One view's micro-batches as the loader yields them; all have the same tiles."""
    return [crops.pin_memory() if device.type == "cuda" else crops] * recipe.batch.accumulation_steps


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _free_memory() -> None:
    gc.collect()  # the accelerator and the objects it prepared form cycles
    torch.cuda.empty_cache()


def _retries(device: torch.device) -> int:
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))


def _collect(recipe: Recipe, device: torch.device, runs: list[StepRun], retries: int) -> Measurement:
    free, total = torch.cuda.mem_get_info(device)
    segments = torch.cuda.memory_snapshot(include_traces=False)
    seconds = statistics.median(run.seconds for run in runs[1:] or runs)
    major, minor = torch.cuda.get_device_capability(device)
    return Measurement(
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
        expandable_segments=any(segment["is_expandable"] for segment in segments),
    )


def _driver() -> str:
    """Return the driver version from nvidia-smi, or `unknown` if that fails; torch does not expose it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no input in it
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else "unknown"
