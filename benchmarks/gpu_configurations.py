"""Configurations for `gpu_validate.py`: recipes that run in seconds on a large GPU, and plans for small GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from moco_accel.recipe.encoder_names import RESNET_NAMES
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe

BASE_LR = {"adamw": 1.5e-4, "adamw_8bit": 1.5e-4, "lars": 0.3}
CARDS_GIB = (8.0, 12.0, 24.0)


@dataclass(frozen=True)
class Configuration:
    """A recipe to validate.

    Attributes:
        name: Unique name.
        recipe: The recipe.
        card_gib: Nominal memory of the GPU to plan the recipe for; None runs the recipe as it is.
    """

    name: str
    recipe: Recipe
    card_gib: float | None = None

    @property
    def family(self) -> str:
        """Return the family of the encoder, `resnet` or `vit`."""
        return "resnet" if self.recipe.encoder.name in RESNET_NAMES else "vit"


def build_recipe(
    encoder: str, tiles: tuple[int, int], *, side: int = 224, bands: int = 3, precision: str = "bf16",
    optimizer: str = "adamw", devices: int = 1, queue: int = 0, contrast: str = "global_batch", recompute: bool = False,
    train_patches: bool = False, expandable: bool = True, keep_last: bool = True, sharded: bool = False,
) -> Recipe:  # fmt: skip
    """Build a valid recipe; `tiles` is (micro-batch size, accumulation steps)."""
    micro, count = tiles
    batch = {"global_batch_size": micro * count * devices, "micro_batch_size": micro, "accumulation_steps": count}
    frozen = encoder not in RESNET_NAMES and not train_patches
    base_lr = BASE_LR[optimizer]
    fields: dict[str, Any] = {
        "encoder": {"name": encoder, "image_size": side, "bands": bands, "freeze_patch_projection": frozen},
        "moco": {"queue_size": queue},
        "batch": batch | {"contrast_over": contrast},
        "optimizer": {"name": optimizer, "base_lr": base_lr, "lr": scaled_lr(base_lr, batch["global_batch_size"])},
        "memory": {
            "mixed_precision": precision,
            "activation_checkpointing": recompute,
            "keep_last_micro_batch": keep_last,
            "expandable_segments": expandable,
            "fully_shard": sharded,
        },
        "hardware": {"num_devices": devices},
    }
    if bands != 3:
        fields["data"] = {"mean": [0.5] * bands, "std": [0.25] * bands}
    return recipe_from_dict(fields)


def _config(encoder: str, micro: int, count: int, **more: Any) -> Configuration:
    recipe = build_recipe(encoder, (micro, count), **more)
    parts = [encoder.removesuffix("_patch16"), f"{more.get('side', 224)}px", f"{micro}x{count}"]
    parts += [recipe.memory.mixed_precision, recipe.optimizer.name]
    parts += [f"{recipe.encoder.bands}bands"] * (recipe.encoder.bands != 3)
    parts += [f"{recipe.hardware.num_devices}devices"] * (recipe.hardware.num_devices > 1)
    parts += [f"queue{recipe.moco.queue_size}"] * (recipe.moco.queue_size > 0)
    parts += ["micro_contrast"] * (recipe.batch.contrast_over == "micro_batch")
    parts += ["recompute"] * recipe.memory.activation_checkpointing
    parts += ["sharded"] * recipe.memory.fully_shard
    parts += ["keep_none"] * (not recipe.memory.keep_last_micro_batch)
    parts += ["train_patches"] * more.get("train_patches", False)
    parts += ["fixed_segments"] * (not recipe.memory.expandable_segments)
    return Configuration("-".join(parts), recipe)


_TINY, _SMALL, _BASE = (f"vit_{size}_patch16" for size in ("tiny", "small", "base"))
_UNPLANNED = (
    # whole batches
    _config(_TINY, 256, 1),
    _config(_SMALL, 128, 1),
    _config(_SMALL, 128, 1, precision="no"),
    _config(_SMALL, 128, 1, precision="fp16"),
    _config(_BASE, 64, 1),
    _config(_BASE, 64, 1, precision="no"),
    _config("resnet18", 256, 1),
    _config("resnet18", 128, 1, precision="no"),
    _config("resnet50", 64, 1),
    _config("resnet50", 64, 1, precision="no"),
    _config("resnet50", 64, 1, precision="fp16"),
    # micro-batches
    _config(_TINY, 128, 4, precision="no"),
    _config(_SMALL, 128, 2, precision="fp16"),
    _config(_SMALL, 64, 4),
    _config(_SMALL, 64, 16),
    _config(_SMALL, 16, 16),
    _config(_BASE, 32, 4),
    _config(_BASE, 64, 16),
    _config("resnet18", 128, 4, precision="fp16"),
    _config("resnet50", 32, 4),
    _config("resnet50", 32, 16, optimizer="lars"),
    # other sizes and bands
    _config(_TINY, 512, 1, side=96),
    _config("vit_small_patch8", 64, 2, side=96),
    _config(_SMALL, 128, 1, bands=13),
    _config(_SMALL, 64, 4, bands=13, train_patches=True),
    _config("resnet18", 512, 2, side=64),
    _config("resnet18", 128, 2, bands=13),
    _config("resnet50", 64, 2, side=120, bands=13),
    # other settings that change memory: optimizer, negatives, queue, recomputation, the patch projection
    _config(_SMALL, 128, 1, optimizer="lars"),
    _config(_SMALL, 128, 4, optimizer="adamw_8bit"),
    _config(_BASE, 64, 2, optimizer="adamw_8bit"),
    _config(_SMALL, 64, 4, contrast="micro_batch"),
    _config(_SMALL, 64, 4, queue=65_536),
    _config(_SMALL, 256, 1, recompute=True),
    _config(_BASE, 128, 4, recompute=True),
    _config(_SMALL, 128, 1, train_patches=True),
    _config("resnet50", 64, 4, contrast="micro_batch", queue=65_536),
    _config("resnet50", 128, 2, recompute=True),
    # several devices
    _config(_TINY, 1024, 1, devices=8),
    _config(_SMALL, 128, 1, devices=2),
    _config(_SMALL, 64, 4, devices=8),
    _config(_SMALL, 128, 16, devices=2),
    _config(_SMALL, 128, 16, devices=2, optimizer="adamw_8bit"),
    _config(_BASE, 64, 2, devices=8),
    _config(_BASE, 32, 4, devices=2, contrast="micro_batch"),
    _config("resnet18", 256, 2, devices=2),
    _config("resnet18", 256, 4, side=96, precision="no", optimizer="lars", devices=8),
    _config("resnet50", 64, 2, devices=8, optimizer="lars"),
    _config("resnet50", 64, 4, devices=2, optimizer="adamw_8bit", queue=65_536),
    # sharded networks
    _config(_SMALL, 64, 4, devices=2, sharded=True, keep_last=False),
    _config(_BASE, 32, 4, devices=8, sharded=True, keep_last=False, optimizer="adamw_8bit"),
    _config(
        "vit_large_patch16", 32, 4, devices=2, sharded=True, keep_last=False, recompute=True, optimizer="adamw_8bit"
    ),
    _config(
        "vit_huge_patch14", 16, 2, devices=2, sharded=True, keep_last=False, recompute=True, optimizer="adamw_8bit"
    ),
    # segments of fixed size; activations of the last micro-batch not kept
    _config(_TINY, 256, 1, expandable=False),
    _config(_SMALL, 128, 1, expandable=False),
    _config(_SMALL, 128, 4, expandable=False),
    _config(_SMALL, 64, 4, keep_last=False),
    _config(_SMALL, 64, 4, devices=8, expandable=False),
    _config(_SMALL, 64, 4, precision="no", keep_last=False, expandable=False),
    _config(_BASE, 64, 1, precision="fp16", expandable=False),
    _config(_BASE, 32, 4, expandable=False),
    _config("resnet18", 128, 2, bands=13, expandable=False),
    _config("resnet50", 64, 1, expandable=False),
    _config("resnet50", 64, 4, expandable=False),
    _config("resnet50", 32, 4, keep_last=False),
    _config("resnet50", 32, 4, precision="fp16", devices=2, expandable=False),
)


_PLANNED = (  # encoder, devices, expandable segments
    (_SMALL, 1, True),
    (_BASE, 1, True),
    ("resnet50", 1, True),
    (_SMALL, 1, False),
    (_SMALL, 2, True),
    ("resnet50", 1, False),
)


def list_configurations(cards_gib: Iterable[float] = CARDS_GIB) -> list[Configuration]:
    """Return all configurations, in an order in which the first few cover every kind."""
    plans = []
    for gib in cards_gib:
        for encoder, devices, expandable in _PLANNED:
            recipe = build_recipe(encoder, (1024, 1), devices=devices, expandable=expandable)
            parts = ["plan", encoder.removesuffix("_patch16"), f"{gib:g}gb"]
            parts += ["2devices"] * (devices == 2) + ["expandable"] * expandable
            plans.append(Configuration("-".join(parts), recipe, gib))
    return _interleave_kinds([*_UNPLANNED, *plans])


def _interleave_kinds(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Reorder: one of each kind (family, precision, planned or not, devices), then a second of each, and so on."""
    kinds: dict[tuple[Any, ...], list[Configuration]] = {}
    for configuration in configurations:
        precision, devices = configuration.recipe.memory.mixed_precision, configuration.recipe.hardware.num_devices
        kind = (configuration.family, precision, configuration.card_gib is not None, devices > 1)
        kinds.setdefault(kind, []).append(configuration)
    longest = max((len(kind) for kind in kinds.values()), default=0)
    return [kind[turn] for turn in range(longest) for kind in kinds.values() if turn < len(kind)]
