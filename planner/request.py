"""What was asked for on the command line, as recipes. Imports no torch, so that a mistake is answered at once."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from moco_accel.recipe import ENCODER_NAMES, RESNET_NAMES, Recipe, divisible_batches, recipe_from_dict, scaled_lr
from moco_accel.recipe_text import RecipeError

DEFAULT_ENCODER = "vit_small_patch16"
# base_lr and weight decay as published: MoCo v3's ViT recipes, and its ResNet-50 of 300 epochs
_OPTIMIZERS = {"adamw": (1.5e-4, 0.1), "adamw_8bit": (1.5e-4, 0.1), "lars": (0.3, 1e-6)}
_MOST_WARMUP_EPOCHS = 40
TABLE_ENCODERS = (*(f"vit_{size}_patch16" for size in ("tiny", "small", "base", "large")), "resnet18", "resnet50")
_FEW_STEPS = 20  # per epoch: below, an epoch is too coarse a unit for warm-up and cosine


@dataclass(frozen=True)
class Request:
    """The science that is asked for; the planner decides micro-batches and checkpointing alone."""

    gpus: int = 1
    vram_gib: float | None = None
    gpu: str | None = None
    encoder: str | None = None
    image_size: int = 224
    bands: int = 3
    global_batch_size: int = 4096
    mixed_precision: str | None = None
    optimizer: str = "adamw_8bit"
    contrast_over: str = "global_batch"
    epochs: int = 300


def check(request: Request, tiles: int | None) -> None:
    """Raises RecipeError on the first thing asked for that cannot be."""
    if request.encoder is not None and request.encoder not in ENCODER_NAMES:
        near = difflib.get_close_matches(request.encoder, ENCODER_NAMES, n=3, cutoff=0.4) or ENCODER_NAMES
        raise RecipeError(f"--encoder={request.encoder} is not known; nearest: {', '.join(near)}")
    if request.optimizer not in (*_OPTIMIZERS, "lars_8bit"):
        raise RecipeError(f"--optimizer={request.optimizer} is not known; one of: {', '.join(_OPTIMIZERS)}")
    if request.global_batch_size < 2 or request.global_batch_size % request.gpus:
        near_batches = divisible_batches(max(request.global_batch_size, 2 * request.gpus), request.gpus)
        raise RecipeError(
            f"--global-batch={request.global_batch_size} does not divide over {request.gpus} GPUs; "
            f"nearest: {near_batches}"
        )
    if tiles is not None and tiles < request.global_batch_size:
        raise RecipeError(
            f"--tiles={tiles} make no batch of {request.global_batch_size}; --global-batch {tiles} is most"
        )


def few_steps(request: Request, tiles: int | None) -> str | None:
    """A warning where an epoch has few optimizer steps, with a batch of which it has more."""
    batch = request.global_batch_size
    if tiles is None or tiles // batch >= _FEW_STEPS:
        return None
    sizes = [request.gpus << power for power in range(1, batch.bit_length()) if request.gpus << power < batch]
    better = max((size for size in sizes if tiles // size >= _FEW_STEPS), default=None)
    hint = f"; --global-batch {better} takes {tiles // better:,}" if better else ""
    return f"{tiles:,} tiles make {tiles // batch} optimizer steps of {batch:,} an epoch, which is few{hint}"


def recipe_for(request: Request, encoder: str) -> Recipe:
    """The recipe asked for, in one micro-batch per device. Raises RecipeError."""
    base_lr, weight_decay = _OPTIMIZERS.get(request.optimizer, _OPTIMIZERS["adamw"])
    per_device = request.global_batch_size // request.gpus
    fields: dict[str, Any] = {
        "encoder": {
            "name": encoder,
            "image_size": request.image_size,
            "bands": request.bands,
            "freeze_patch_projection": encoder not in RESNET_NAMES,
        },
        "batch": {
            "global_batch_size": request.global_batch_size,
            "micro_batch_size": per_device,
            "accumulation_steps": 1,
            "contrast_over": request.contrast_over,
        },
        "optimizer": {
            "name": request.optimizer,
            "base_lr": base_lr,
            "lr": scaled_lr(base_lr, request.global_batch_size),
            "weight_decay": weight_decay,
        },
        "schedule": {"epochs": request.epochs, "warmup_epochs": min(_MOST_WARMUP_EPOCHS, request.epochs // 2)},
        "memory": {} if request.mixed_precision is None else {"mixed_precision": request.mixed_precision},
        "hardware": {"num_devices": request.gpus, "vram_gib": request.vram_gib, "gpu": request.gpu},
        "data": {},
    }
    if request.bands != 3:  # no default is known; `moco-data inspect` says what the tiles' are
        fields["data"] = {"mean": [0.5] * request.bands, "std": [0.25] * request.bands}
    return recipe_from_dict(fields)


def recipe_path(request: Request, vram_gib: float) -> str:
    """Where the recipe goes when no place is named."""
    count = {1: "single", 2: "dual"}.get(request.gpus, f"{request.gpus}x")
    card = re.sub(r"[^a-z0-9]+", "_", request.gpu.lower()) if request.gpu else f"{vram_gib:g}gb"
    between = "_" if request.gpu else ""
    encoder = f"_{request.encoder}" if request.encoder not in (None, DEFAULT_ENCODER) else ""
    return f"recipes/{count}{between}{card}{encoder}.yaml"


def launch_command(gpus: int, path: str) -> str:
    """How the recipe at `path` is trained."""
    config = {1: "single_gpu", 2: "dual_gpu"}.get(gpus)
    processes = "" if config else f" --num_processes {gpus}"
    return (
        f"accelerate launch --config_file accelerate_configs/{config or 'dual_gpu'}.yaml{processes} "
        f"moco_accel/train.py --recipe {path}"
    )
