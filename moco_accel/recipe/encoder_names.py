"""The encoders that a recipe can name, with their sizes. A new encoder is one line in one of the two tables."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple


class VitSize(NamedTuple):
    """Size of a vision transformer: width of a token, number of blocks, attention heads, patch sizes in pixels."""

    width: int
    layers: int
    heads: int
    patches: tuple[int, ...] = (8, 16)


class ResnetSize(NamedTuple):
    """Blocks in each of the four stages of a ResNet; whether they are bottleneck blocks."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool


# ViT-S and ViT-B have 12 heads in MoCo v3; the others are those of DeiT and ViT
VIT_SIZES = {
    "tiny": VitSize(192, 12, 3),
    "small": VitSize(384, 12, 12),
    "base": VitSize(768, 12, 12),
    "large": VitSize(1024, 24, 16),
    "huge": VitSize(1280, 32, 16, patches=(14,)),
}
RESNET_SIZES = {
    "resnet10": ResnetSize((1, 1, 1, 1), bottleneck=False),
    "resnet18": ResnetSize((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResnetSize((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResnetSize((3, 4, 6, 3), bottleneck=True),
    "resnet101": ResnetSize((3, 4, 23, 3), bottleneck=True),
}
VIT_NAMES = tuple(f"vit_{name}_patch{patch}" for name, size in VIT_SIZES.items() for patch in size.patches)
RESNET_NAMES = tuple(RESNET_SIZES)
ENCODER_NAMES = VIT_NAMES + RESNET_NAMES

ASSUMED_PEAK_ERROR = {"ViT": 0.05, "ResNet": 0.10}
"""Relative error of a predicted peak, as long as too few were measured on GPUs. Cautious guesses: a ResNet's
convolutions use workspaces that cuDNN chooses at run time and that no trace shows."""


def encoder_family(encoder: str) -> str:
    """Return `ViT` or `ResNet`."""
    return "ResNet" if encoder in RESNET_NAMES else "ViT"


def closest_encoder(text: str) -> str:
    """Return the encoder that people may mean by `text`, such as vit_base_patch16 by `vit-b` or `ViT-B/16`."""
    found = re.match(r"(?:de|v)it[ _-]?([tsblh])", text.lower())
    if found:
        size = next(size for size in VIT_SIZES if size.startswith(found[1]))
        patches = VIT_SIZES[size].patches
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        patch = next((patch for patch in numbers if patch in patches), patches[-1])
        return f"vit_{size}_patch{patch}"
    return (difflib.get_close_matches(text.lower(), ENCODER_NAMES, n=1, cutoff=0.4) or ["vit_small_patch16"])[0]
