"""The options of `moco-plan` and the recipe that they request. Imports no torch, so that mistakes are reported fast."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_accel.recipe.constants import RESNET_NAMES
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe

DEFAULT_ENCODER = "vit_small_patch16"
# base_lr and weight decay as published: MoCo v3's ViT recipes, and its ResNet-50 of 300 epochs
OPTIMIZERS = {"adamw": (1.5e-4, 0.1), "adamw_8bit": (1.5e-4, 0.1), "lars": (0.3, 1e-6)}
TABLE_ENCODERS = (*(f"vit_{size}_patch16" for size in ("tiny", "small", "base", "large")), "resnet18", "resnet50")
_MAX_WARMUP_EPOCHS = 40
_FEW_STEPS = 20  # per epoch; below, an epoch is too coarse a unit for warm-up and cosine


@dataclass(frozen=True)
class Request:
    """The training that is requested. The planner chooses micro-batches and memory settings.

    Attributes:
        gpus: GPUs per node.
        encoder: None plans for a table of encoders.
        mixed_precision: None takes the 16-bit format of the card.
    """

    gpus: int = 1
    nodes: int = 1
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

    @property
    def num_devices(self) -> int:
        """GPUs of all nodes."""
        return self.gpus * self.nodes


@dataclass(frozen=True)
class PlanOptions:
    """The command line. The cards determine the fields of `request` that it leaves open."""

    request: Request
    gpu: str | None = None
    vram: str | None = None
    gpus: int | None = None
    recipe_file: Path | None = None
    output: Path | None = None
    tiles: int | None = None
    as_json: bool = False
    save: Path | None = None
    measure: bool = False
    nodes: int | None = None
    slurm: Path | None = None


def few_steps_warning(batch: int, gpus: int, tiles: int | None) -> str | None:
    """Return a warning if an epoch has few optimizer steps, with a global batch that gives more."""
    if tiles is None or tiles // batch >= _FEW_STEPS:
        return None
    sizes = [gpus << power for power in range(1, batch.bit_length()) if gpus << power < batch]
    better = max((size for size in sizes if tiles // size >= _FEW_STEPS), default=None)
    hint = f"; --global-batch {better} gives {tiles // better:,}" if better else ""
    return f"{tiles:,} tiles give only {tiles // batch} optimizer steps of {batch:,} tiles per epoch{hint}"


def build_recipe(request: Request, encoder: str) -> Recipe:
    """Return the requested recipe, with one micro-batch per device.

    Raises:
        UserError: If the recipe's rules refuse it.
    """
    base_lr, weight_decay = OPTIMIZERS.get(request.optimizer, OPTIMIZERS["adamw"])
    per_device = request.global_batch_size // request.num_devices
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
        "schedule": {"epochs": request.epochs, "warmup_epochs": min(_MAX_WARMUP_EPOCHS, request.epochs // 2)},
        "memory": {} if request.mixed_precision is None else {"mixed_precision": request.mixed_precision},
        "hardware": {
            "num_devices": request.num_devices,
            "num_nodes": request.nodes,
            "vram_gib": request.vram_gib,
            "gpu": request.gpu,
        },
        "data": {},
    }
    if request.bands != 3:  # the values may have any range; the run takes percentiles from its tiles
        fields["data"] = {"scaling": "percentiles"}
    return recipe_from_dict(fields)


def default_recipe_path(request: Request, vram_gib: float) -> str:
    """Return the path of the recipe without `--output`, named after the cards and the options that are not defaults."""
    count = {1: "single", 2: "dual"}.get(request.gpus, f"{request.gpus}x")
    if request.nodes > 1:
        count = f"{request.nodes}x{request.gpus}x"
    card = f"_{re.sub(r'[^a-z0-9]+', '_', request.gpu.lower())}" if request.gpu else f"{vram_gib:g}gb"
    default = Request()
    parts = {
        f"{request.encoder}": request.encoder not in (None, DEFAULT_ENCODER),
        f"{request.image_size}px": request.image_size != default.image_size,
        f"{request.bands}bands": request.bands != default.bands,
        f"batch{request.global_batch_size}": request.global_batch_size != default.global_batch_size,
        "fp32": request.mixed_precision == "no",
        request.optimizer: request.optimizer != default.optimizer,
        request.contrast_over: request.contrast_over != default.contrast_over,
        f"{request.epochs}epochs": request.epochs != default.epochs,
    }
    return f"recipes/{'_'.join([count + card, *(part for part, differs in parts.items() if differs)])}.yaml"
