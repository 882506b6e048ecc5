"""Infer an encoder's architecture from the shapes of its tensors and compare it with the recipe's encoder."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from moco_accel.common.errors import UserError, short_repr
from moco_accel.pretrained.tensor_names import Library, tensor_location
from moco_accel.recipe.encoder_names import RESNET_SIZES, VIT_SIZES

Shapes = Mapping[str, tuple[int, ...]]
Architecture = dict[str, int | str]
"""Kind, bands, image size; a ViT's width, layers, heads and patch; a ResNet's blocks. The keys appear in messages."""

_LAYER = re.compile(r"^(?:blocks|encoder\.layer|encoder\.layers)\.(?:encoder_layer_)?(\d+)\.")
_BLOCK = re.compile(r"^(?:layer|encoder\.stages\.)(\d)(?:\.layers)?\.(\d+)\.")
_IMPLIED_BY_NAME = {"kind", "width", "layers", "heads", "patch", "blocks"}


def infer_architecture(family: str, library: Library, shapes: Shapes) -> Architecture:
    """Return the architecture of an encoder whose tensors have `library`'s names.

    Raises:
        KeyError: If a tensor that every encoder of the family has is missing.
        ValueError: If the shapes are not those of the family.
    """
    found = _vit_architecture(library, shapes) if family == "ViT" else _resnet_architecture(library, shapes)
    return {"kind": family, **found}


def check_architecture(source: str, found: Architecture, wanted: Architecture) -> None:
    """Check that the weights of `source` fit the recipe's encoder.

    Raises:
        UserError: If they differ. The message names every difference and the recipe fields that would fit.
    """
    differing = [key for key, value in found.items() if key in wanted and value != wanted[key]]
    if not differing:
        return
    theirs = ", ".join(f"{key} {found[key]}" for key in differing)
    ours = ", ".join(f"{key} {wanted[key]}" for key in differing)
    raise UserError(
        f"encoder.weights={short_repr(source)} has {theirs}; this encoder has {ours}. "
        f"{_suggest_fields(found, differing)}"
    )


def _suggest_fields(found: Architecture, differing: list[str]) -> str:
    name = _encoder_name(found)
    if name is None:
        return "No encoder of this project is like that; encoder.weights=null starts at random"
    fields = [f"encoder.name={name}"] if _IMPLIED_BY_NAME & set(differing) else []
    fields += [f"encoder.{key.replace(' ', '_')}={found[key]}" for key in ("bands", "image size") if key in differing]
    return f"{', '.join(fields)} would fit these weights"


def _encoder_name(architecture: Architecture) -> str | None:
    """Return the recipe's name of an architecture; None if no encoder has it."""
    if "blocks" in architecture:
        blocks = architecture["blocks"]
        return next((name for name, size in RESNET_SIZES.items() if _describe_blocks(*size) == blocks), None)
    for name, size in VIT_SIZES.items():
        found = architecture["width"], architecture["layers"], architecture.get("heads", size.heads)
        if found == size[:3] and architecture["patch"] in size.patches:
            return f"vit_{name}_patch{architecture['patch']}"
    return None


def _describe_blocks(counts: Iterable[int], bottleneck: bool) -> str:
    return f"{'-'.join(map(str, counts))} {'bottleneck' if bottleneck else 'basic'}"


def _vit_architecture(library: Library, shapes: Shapes) -> Architecture:
    projection = shapes[tensor_location(library, "vit.embeddings.patch_embeddings.projection.weight")[0]]
    positions = shapes[tensor_location(library, "vit.embeddings.position_embeddings")[0]]
    if len(projection) != 4 or len(positions) != 3:
        raise ValueError(f"patch projection {list(projection)} and positions {list(positions)} are not a ViT's")
    side = math.isqrt(max(0, positions[1] - 1))
    if side * side + 1 != positions[1]:
        raise ValueError(f"{positions[1]} positions are not those of a square and a CLS token")
    layers = {int(found[1]) for name in shapes if (found := _LAYER.match(name))}
    width, bands, patch = projection[:3]
    return {"width": width, "layers": len(layers), "patch": patch, "bands": bands, "image size": side * patch}


def _resnet_architecture(library: Library, shapes: Shapes) -> Architecture:
    blocks = {(int(found[1]), int(found[2])) for name in shapes if (found := _BLOCK.match(name))}
    counts = Counter(stage for stage, _ in sorted(blocks))
    bottleneck = tensor_location(library, "layer1.0.conv3.weight")[0] in shapes
    bands = shapes[tensor_location(library, "conv1.weight")[0]][1]
    return {"blocks": _describe_blocks(counts.values(), bottleneck), "bands": bands}
