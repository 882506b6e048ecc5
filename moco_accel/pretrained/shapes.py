"""What encoder a file of tensors is, by their shapes; and how it differs from the one a recipe names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from moco_accel.common.errors import UserError, short
from moco_accel.networks.encoders import _VIT_SIZES
from moco_accel.pretrained.tensor_names import Library, place_in
from moco_accel.recipe.constants import VIT_NAMES

Shapes = Mapping[str, tuple[int, ...]]
Facts = dict[str, int | str]
"""What a person would say of an encoder: a ViT's width, layers, heads, patch; a ResNet's blocks; bands, image size."""

_LAYER = re.compile(r"^(?:blocks|encoder\.layer|encoder\.layers)\.(?:encoder_layer_)?(\d+)\.")
_BLOCK = re.compile(r"^(?:layer|encoder\.stages\.)(\d)(?:\.layers)?\.(\d+)\.")
_NAMED = {"kind", "width", "layers", "heads", "patch", "blocks"}  # what encoder.name says
_RESNETS = {
    "1-1-1-1 basic": "resnet10",
    "2-2-2-2 basic": "resnet18",
    "3-4-6-3 basic": "resnet34",
    "3-4-6-3 bottleneck": "resnet50",
    "3-4-23-3 bottleneck": "resnet101",
}


def facts_of(family: str, library: Library, shapes: Shapes) -> Facts:
    """Of tensors in `library`'s names. Raises KeyError for one that an encoder must have, and ValueError."""
    facts = _vit_facts(library, shapes) if family == "ViT" else _resnet_facts(library, shapes)
    return {"kind": family, **facts}


def check_facts(source: str, found: Facts, wanted: Facts) -> None:
    """Raises UserError with every difference, and the fields of a recipe that would fit."""
    differing = [what for what, value in found.items() if what in wanted and value != wanted[what]]
    if not differing:
        return
    theirs = ", ".join(f"{what} {found[what]}" for what in differing)
    ours = ", ".join(f"{what} {wanted[what]}" for what in differing)
    raise UserError(
        f"encoder.weights={short(source)} has {theirs}; this encoder has {ours}. {_what_fits(found, differing)}"
    )


def _what_fits(found: Facts, differing: list[str]) -> str:
    fields = []
    if name := _name(found):
        if _NAMED & set(differing):
            fields.append(f"encoder.name={name}")
        fields += [
            f"encoder.{what.replace(' ', '_')}={found[what]}" for what in ("bands", "image size") if what in differing
        ]
        return f"{', '.join(fields)} would fit these weights"
    return "No encoder here is like that; encoder.weights=null starts at random"


def _name(facts: Facts) -> str | None:
    """The encoder that a recipe would name; None where there is none."""
    if "blocks" in facts:
        return _RESNETS.get(str(facts["blocks"]))
    for size, (width, layers, heads) in _VIT_SIZES.items():
        name = f"vit_{size}_patch{facts['patch']}"
        if (facts["width"], facts["layers"], facts.get("heads", heads)) == (width, layers, heads) and name in VIT_NAMES:
            return name
    return None


def _vit_facts(library: Library, shapes: Shapes) -> Facts:
    projection = shapes[place_in(library, "vit.embeddings.patch_embeddings.projection.weight")[0]]
    positions = shapes[place_in(library, "vit.embeddings.position_embeddings")[0]]
    if len(projection) != 4 or len(positions) != 3:
        raise ValueError(f"patch projection {list(projection)} and positions {list(positions)} are no ViT's")
    side = math.isqrt(max(0, positions[1] - 1))
    if side * side + 1 != positions[1]:
        raise ValueError(f"{positions[1]} positions are not those of a square and a CLS token")
    layers = {int(found[1]) for name in shapes if (found := _LAYER.match(name))}
    width, bands, patch = projection[:3]
    return {"width": width, "layers": len(layers), "patch": patch, "bands": bands, "image size": side * patch}


def _resnet_facts(library: Library, shapes: Shapes) -> Facts:
    blocks = {(int(found[1]), int(found[2])) for name in shapes if (found := _BLOCK.match(name))}
    stages = sorted({stage for stage, _ in blocks})
    counts = "-".join(str(sum(stage == of for of, _ in blocks)) for stage in stages)
    bottleneck = place_in(library, "layer1.0.conv3.weight")[0] in shapes
    bands = shapes[place_in(library, "conv1.weight")[0]][1]
    return {"blocks": f"{counts} {'bottleneck' if bottleneck else 'basic'}", "bands": bands}
