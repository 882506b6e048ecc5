"""What was asked for on the command line, as recipes. Imports no torch, so that a mistake is answered at once."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_accel.common.errors import UserError
from moco_accel.recipe.constants import ENCODER_NAMES, RESNET_NAMES
from moco_accel.recipe.load import load_recipe, recipe_from_dict
from moco_accel.recipe.rules import divisible_batches, scaled_lr
from moco_accel.recipe.schema import Recipe
from planner.cards.fleet import Fleet

DEFAULT_ENCODER = "vit_small_patch16"
# base_lr and weight decay as published: MoCo v3's ViT recipes, and its ResNet-50 of 300 epochs
_OPTIMIZERS = {"adamw": (1.5e-4, 0.1), "adamw_8bit": (1.5e-4, 0.1), "lars": (0.3, 1e-6)}
_MOST_WARMUP_EPOCHS = 40
TABLE_ENCODERS = (*(f"vit_{size}_patch16" for size in ("tiny", "small", "base", "large")), "resnet18", "resnet50")
_FEW_STEPS = 20  # per epoch: below, an epoch is too coarse a unit for warm-up and cosine


@dataclass(frozen=True)
class Request:
    """The science that is asked for; the planner decides micro-batches and checkpointing alone.

    `gpus` are those of each of `nodes`.
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


def check(request: Request, tiles: int | None) -> None:
    """Raises UserError on the first thing asked for that cannot be."""
    if request.encoder is not None and request.encoder not in ENCODER_NAMES:
        near = difflib.get_close_matches(request.encoder, ENCODER_NAMES, n=3, cutoff=0.4) or ENCODER_NAMES
        raise UserError(f"--encoder={request.encoder} is not known; nearest: {', '.join(near)}")
    if request.optimizer not in (*_OPTIMIZERS, "lars_8bit"):
        raise UserError(f"--optimizer={request.optimizer} is not known; one of: {', '.join(_OPTIMIZERS)}")
    batch, gpus = request.global_batch_size, request.num_devices
    if batch < 2:
        raise UserError(f"--global-batch={batch} leaves nothing to contrast; --global-batch {max(2, gpus)} works")
    if batch % gpus:
        near_batches = divisible_batches(max(batch, gpus), gpus)
        of_nodes = f" ({request.nodes} nodes of {request.gpus})" if request.nodes > 1 else ""
        raise UserError(f"--global-batch={batch} does not divide over {gpus} GPUs{of_nodes}; nearest: {near_batches}")
    if tiles is not None and tiles < request.global_batch_size:
        raise UserError(f"--tiles={tiles} make no batch of {request.global_batch_size}; --global-batch {tiles} is most")


def few_steps(batch: int, gpus: int, tiles: int | None) -> str | None:
    """A warning where an epoch has few optimizer steps, with a global batch of which it has more."""
    if tiles is None or tiles // batch >= _FEW_STEPS:
        return None
    sizes = [gpus << power for power in range(1, batch.bit_length()) if gpus << power < batch]
    better = max((size for size in sizes if tiles // size >= _FEW_STEPS), default=None)
    hint = f"; --global-batch {better} takes {tiles // better:,}" if better else ""
    return f"{tiles:,} tiles make {tiles // batch} optimizer steps of {batch:,} an epoch, which is few{hint}"


def check_alone(recipe_file: Path, given: list[str]) -> None:
    """A recipe says all of what to train: raises UserError where an option `given` beside it would do nothing."""
    science = ("encoder", "image_size", "bands", "global_batch", "precision", "optimizer", "contrast_over", "epochs")
    for name in given:
        if name in (*science, "output"):
            option = name.replace("_", "-")
            raise UserError(f"--{option} would do nothing beside --recipe; leave it out, or change {recipe_file}")


def check_nodes(nodes: int | None, recipe: Recipe | None, recipe_file: Path | None) -> None:
    """Raises UserError for a number of nodes that cannot be, or is not the recipe's."""
    if nodes is not None and nodes < 1:
        raise UserError(f"--nodes={nodes} must be at least 1; --nodes 1 works")
    if recipe is not None and nodes not in (None, own := recipe.hardware.num_nodes):
        raise UserError(
            f"--nodes={nodes} but hardware.num_nodes={own} in {recipe_file}; --nodes {own} works, or plan anew without "
            "--recipe"
        )


def check_fleet(cards: Fleet, recipe: Recipe, recipe_file: Path | None) -> None:
    """Raises UserError where a recipe is for another number of GPUs, or computes in what a card has not."""
    hardware, card = recipe.hardware, cards.deciding
    per_node = hardware.num_devices // hardware.num_nodes
    if len(cards.cards) != per_node:
        over = f" over hardware.num_nodes={hardware.num_nodes}" if hardware.num_nodes > 1 else ""
        raise UserError(
            f"--gpus={len(cards.cards)} but hardware.num_devices={hardware.num_devices}{over} in {recipe_file}; "
            f"--gpus {per_node} works, or plan anew without --recipe"
        )
    if recipe.memory.mixed_precision == "bf16" and not card.bf16:
        raise UserError(
            f"memory.mixed_precision=bf16 in {recipe_file}, and {card.name} computes in fp16 only; "
            "memory.mixed_precision=fp16 works"
        )


def check_writable(option: str, path: Path, works: str) -> None:
    """Makes the folder of `path`, given as `option`. Raises UserError where no file can be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}={path} cannot be written: {error}; {option} {works} works") from None
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{option}={path} cannot be written; {option} {works} works")


def check_place(path: Path, recipe: Recipe, by_default: bool) -> None:
    """Raises UserError where `recipe` cannot be written, or would replace, unasked, a recipe with other fields."""
    check_writable("--output", path, "recipe.yaml")
    if not by_default or not path.exists():
        return
    there, new = load_recipe(path).model_dump(), recipe.model_dump()
    for section in ("encoder", "moco", "optimizer", "schedule", "augment", "data", "evaluation", "run"):
        for field, value in new[section].items():
            if there[section][field] != value:
                raise UserError(
                    f"{path} exists and has {section}.{field}={there[section][field]}, not {value}; "
                    f"--output with another name keeps both"
                )


def recipe_for(request: Request, encoder: str) -> Recipe:
    """The recipe asked for, in one micro-batch per device. Raises UserError."""
    base_lr, weight_decay = _OPTIMIZERS.get(request.optimizer, _OPTIMIZERS["adamw"])
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
        "schedule": {"epochs": request.epochs, "warmup_epochs": min(_MOST_WARMUP_EPOCHS, request.epochs // 2)},
        "memory": {} if request.mixed_precision is None else {"mixed_precision": request.mixed_precision},
        "hardware": {
            "num_devices": request.num_devices,
            "num_nodes": request.nodes,
            "vram_gib": request.vram_gib,
            "gpu": request.gpu,
        },
        "data": {},
    }
    if request.bands != 3:  # of any stored type, and a run takes the numbers from its tiles
        fields["data"] = {"scaling": "percentiles"}
    return recipe_from_dict(fields)


def recipe_path(request: Request, vram_gib: float) -> str:
    """Where the recipe goes when no place is named: after the cards and what is not as usual."""
    count = {1: "single", 2: "dual"}.get(request.gpus, f"{request.gpus}x")
    if request.nodes > 1:
        count = f"{request.nodes}x{request.gpus}x"
    card = f"_{re.sub(r'[^a-z0-9]+', '_', request.gpu.lower())}" if request.gpu else f"{vram_gib:g}gb"
    usual = Request()
    parts = {
        f"{request.encoder}": request.encoder not in (None, DEFAULT_ENCODER),
        f"{request.image_size}px": request.image_size != usual.image_size,
        f"{request.bands}bands": request.bands != usual.bands,
        f"batch{request.global_batch_size}": request.global_batch_size != usual.global_batch_size,
        "fp32": request.mixed_precision == "no",
        request.optimizer: request.optimizer != usual.optimizer,
        request.contrast_over: request.contrast_over != usual.contrast_over,
        f"{request.epochs}epochs": request.epochs != usual.epochs,
    }
    return f"recipes/{'_'.join([count + card, *(part for part, named in parts.items() if named)])}.yaml"
