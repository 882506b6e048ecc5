"""Check that /dev/shm has room for the micro-batches that loader workers pass on through shared memory."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from moco_accel.common.errors import UserError
from moco_accel.recipe.schema import Recipe
from moco_accel.views.crops import crop_dtype

SHARED_MEMORY = Path("/dev") / "shm"
_MIB, _GIB = 1 << 20, 1 << 30
_MIN_ADVISED_GIB = 2
_WORKER_BYTES = 1 << 16  # of semaphores and small tensors; measured: 2^15


def prefetch_factor(recipe: Recipe) -> int | None:
    """Return the micro-batches that each worker loads ahead: together at least those of the next step."""
    workers = recipe.data.num_workers
    return max(2, -(-recipe.batch.accumulation_steps // workers)) if workers else None


def shared_bytes(recipe: Recipe, on_gpu: bool) -> int:
    """Return the most bytes that the loaded micro-batches of one process take in shared memory.

    These are the micro-batches that are loaded ahead, and those of the step for which the process collects them. Of the
    latter, a process with a GPU leaves only one there, as it copies them into pinned memory.
    """
    config, ahead = recipe.encoder, prefetch_factor(recipe)
    if ahead is None:
        return 0
    crop = config.bands * config.image_size**2 * torch.empty((), dtype=crop_dtype(recipe)).element_size()
    collected = 1 if on_gpu else recipe.batch.accumulation_steps
    micro_batches = ahead * recipe.data.num_workers + collected
    return 2 * recipe.batch.micro_batch_size * crop * micro_batches + _WORKER_BYTES * recipe.data.num_workers


def check_shared_memory(recipe: Recipe, on_gpu: bool) -> None:
    """Check the free space of /dev/shm against what the processes of this node need. Call it before workers start.

    Raises:
        UserError: If the space is too small: workers would fail in the middle of a step.
    """
    processes = recipe.hardware.num_devices // recipe.hardware.num_nodes
    needed = shared_bytes(recipe, on_gpu) * processes
    if not needed or not SHARED_MEMORY.is_dir():
        return
    found = os.statvfs(SHARED_MEMORY)
    free = found.f_bavail * found.f_frsize
    if needed <= free:
        return
    of_processes = f" of {processes} processes" if processes > 1 else ""
    raise UserError(
        f"data.num_workers={recipe.data.num_workers}: micro-batches that the loader workers{of_processes} have loaded "
        f"take up to {math.ceil(10 * needed / _MIB) / 10:,} MiB of shared memory, and {SHARED_MEMORY} has "
        f"{math.floor(10 * free / _MIB) / 10:,} MiB free; docker run "
        f"--shm-size={max(_MIN_ADVISED_GIB, math.ceil(2 * needed / _GIB))}g gives a container more, --set "
        "data.num_workers=0 works without it"
    )
