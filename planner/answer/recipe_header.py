"""Write the comment above a planned recipe: launch command, hardware, differences from the paper."""

from __future__ import annotations

import textwrap

from moco_accel.recipe.constants import RESNET_NAMES
from moco_accel.recipe.data_sections import Augment
from moco_accel.recipe.launch_command import FIRST_NODE
from moco_accel.recipe.schema import Recipe

_PAPER_ENCODERS = ("vit_small_patch16", "vit_base_patch16", "vit_large_patch16", "resnet50")
_PAPER_BATCH = 4096


def recipe_header(recipe: Recipe, command: str, evidence: str) -> str:
    """Return the comment lines for `save_recipe`."""
    devices, vram_gib = recipe.hardware.num_devices, recipe.hardware.vram_gib
    cards = f"{devices} GPU{'s' if devices > 1 else ''} of {vram_gib:g} GB" if vram_gib else recipe.hardware.gpu
    nodes = recipe.hardware.num_nodes
    if nodes > 1:
        cards = f"{cards}, {devices // nodes} in each of {nodes} nodes"
    differences = "; ".join(differences_from_paper(recipe)) or "nothing"
    return "\n".join(
        [
            command,
            *([_other_nodes(nodes)] if nodes > 1 else []),
            f"Hardware: {cards}. Planned by moco-plan: {evidence}.",
            *textwrap.wrap(f"Differs from the paper: {differences}.", 116, subsequent_indent="  "),
        ]
    )


def _other_nodes(nodes: int) -> str:
    others = "the other node" if nodes == 2 else "the others"
    ranks = "--machine_rank 1" if nodes == 2 else f"--machine_rank 1 to {nodes - 1}"
    return f"Run this on the first node, whose address is {FIRST_NODE}; on {others} with {ranks}."


def differences_from_paper(recipe: Recipe) -> list[str]:
    """Return what differs from arXiv 2104.02057 for this kind of encoder, as phrases."""
    resnet = recipe.encoder.name in RESNET_NAMES
    moco, batch, optimizer = recipe.moco, recipe.batch, recipe.optimizer
    optimizers = ("LARS", "lars") if resnet else ("AdamW", "adamw")
    temperature = 1.0 if resnet else 0.2
    augment = Augment()
    checks = {
        f"{recipe.encoder.name} is not among its encoders": recipe.encoder.name not in _PAPER_ENCODERS,
        f"{recipe.encoder.image_size} px (not 224)": recipe.encoder.image_size != 224,
        f"a batch of {batch.global_batch_size} (not {_PAPER_BATCH})": batch.global_batch_size != _PAPER_BATCH,
        "negatives of one micro-batch only": batch.contrast_over == "micro_batch",
        f"a queue of {moco.queue_size} keys": moco.queue_size > 0,
        f"{_optimizer_name(optimizer.name)} (not {optimizers[0]})": optimizer.name != optimizers[1],
        f"T {moco.temperature:g} (not {temperature:g})": moco.temperature != temperature,
        "a constant momentum coefficient (not cosine to 1)": moco.momentum_schedule == "constant",
        "a trained patch projection": not resnet and not recipe.encoder.freeze_patch_projection,
        "BatchNorm on the predictor's output": resnet and moco.predictor_output_norm,
        f"the encoder's BatchNorm takes its statistics from {batch.micro_batch_size} tiles (not 512)": resnet,
        recipe.memory.mixed_precision: recipe.memory.mixed_precision != "no",
        "satellite augmentation (turns, vertical flip, sensor noise, weaker colour)": recipe.augment == augment,
    }
    return [difference for difference, holds in checks.items() if holds]


def _optimizer_name(optimizer: str) -> str:
    return {"adamw": "AdamW", "adamw_8bit": "AdamW with 8-bit state", "lars": "LARS"}.get(optimizer, optimizer)
