"""The options of `moco-plan`, and the cards and the recipe that they request. No torch unless it looks for GPUs."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_accel.common.errors import UserError
from moco_accel.recipe.encoder_names import RESNET_NAMES
from moco_accel.recipe.hardware_sections import Hardware
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe
from planner.cards.fleet import Fleet, local_cards, parse_fleet

DEFAULT_ENCODER = "vit_small_patch16"
# base_lr and weight decay as published: MoCo v3's ViT recipes, and its ResNet-50 of 300 epochs
OPTIMIZERS = {"adamw": (1.5e-4, 0.1), "adamw_8bit": (1.5e-4, 0.1), "lars": (0.3, 1e-6)}
TABLE_ENCODERS = (*(f"vit_{size}_patch16" for size in ("tiny", "small", "base", "large")), "resnet18", "resnet50")
_MAX_WARMUP_EPOCHS = 40
_FEW_STEPS = 20  # per epoch; below, an epoch is too coarse a unit for warm-up and cosine


@dataclass(frozen=True)
class Request:
    """The training that is requested, on `gpus` per node. The planner chooses micro-batches and memory settings.

    An `encoder` of None plans for a table of encoders; a `mixed_precision` of None takes the card's 16-bit format.
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
    batch_note: str | None = None


def find_cards(options: PlanOptions, recipe: Recipe | None) -> Fleet | None:
    """Return the cards named on the command line, else the recipe's, else those of this machine; None without any.

    Raises:
        UserError: If the options contradict each other, the recipe or this machine.
    """
    if options.measure and (options.gpu or options.vram):
        raise UserError("--measure runs on the GPUs of this machine; omit --gpu and --vram")
    gpus, nodes = options.gpus, options.nodes or 1
    if recipe is not None:
        nodes = recipe.hardware.num_nodes
        gpus = recipe.hardware.num_devices // nodes if gpus is None else gpus
    named = parse_fleet(options.gpu, options.vram, gpus, nodes)
    if named is None and recipe is not None and recipe.hardware.vram_gib is not None and not options.measure:
        named = _cards_of_recipe(recipe.hardware, gpus)
    if named is not None:
        return named
    found = local_cards()
    if options.measure and not found:
        from planner.evidence.measure import NO_GPU

        raise UserError(NO_GPU)
    if found and options.gpus is not None and options.gpus > len(found):
        raise UserError(
            f"--gpus={options.gpus} but this machine has {len(found)}; --gpus {len(found)} works, or name the GPUs of "
            "another machine: --vram 8"
        )
    return Fleet(tuple(found[: gpus or len(found)]), nodes) if found else None


def _cards_of_recipe(hardware: Hardware, gpus: int | None) -> Fleet | None:
    """Return the cards that a recipe was planned for, by size if their name is not known."""
    vram = f"{hardware.vram_gib:g}"
    try:
        return parse_fleet(hardware.gpu, vram, gpus, hardware.num_nodes)
    except UserError:
        return parse_fleet(None, vram, gpus, hardware.num_nodes)


def complete_request(request: Request, cards: Fleet) -> Request:
    """Return the request with the fields that the cards determine."""
    card = cards.limiting
    return dataclasses.replace(
        request,
        gpus=len(cards.cards),
        nodes=cards.num_nodes,
        vram_gib=card.marketed_gib,
        gpu=card.name if card.product else None,
        mixed_precision=request.mixed_precision or card.precision,
    )


def default_global_batch(gpus: int, nodes: int, tiles: int | None) -> tuple[int, str | None]:
    """Return the paper's batch of 4,096 and None; for fewer `tiles`, a smaller batch and a note on it.

    The smaller batch is the largest power of two per GPU that leaves at least `_FEW_STEPS` steps per epoch.
    """
    default, devices = Request().global_batch_size, gpus * nodes
    if tiles is None or tiles >= default:
        return default, None
    sizes = [devices << power for power in range(1, default.bit_length()) if devices << power <= tiles]
    batch = max((size for size in sizes if tiles // size >= _FEW_STEPS), default=min(sizes, default=devices * 2))
    return batch, (
        f"--tiles={tiles:,} are fewer than the paper's batch of {default:,}: planned for a global batch of {batch:,}, "
        f"{tiles // batch:,} steps per epoch; --global-batch sets another"
    )


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
        # with other bands the values may have any range; the run takes percentiles from its tiles
        "data": {} if request.bands == 3 else {"scaling": "percentiles"},
    }
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
