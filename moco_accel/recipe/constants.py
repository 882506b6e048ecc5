"""Names that a recipe accepts, and the numbers behind them."""

from __future__ import annotations

VIT_NAMES = (
    *(f"vit_{size}_patch{p}" for size in ("tiny", "small", "base", "large") for p in (8, 16)),
    "vit_huge_patch14",
)
RESNET_NAMES = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101")
ENCODER_NAMES = VIT_NAMES + RESNET_NAMES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STORED_RANGES = {"uint8": (0.0, 255.0), "reflectance": (0.0, 10_000.0), "reflectance_offset": (1_000.0, 11_000.0)}

ASSUMED_PEAK_ERROR = {"ViT": 0.05, "ResNet": 0.10}
"""Relative error of a predicted peak, as long as too few were measured on GPUs. Cautious guesses: a ResNet's
convolutions use workspaces that cuDNN chooses at run time and that no trace shows."""


def encoder_family(encoder: str) -> str:
    """Return `ViT` or `ResNet`."""
    return "ResNet" if encoder in RESNET_NAMES else "ViT"
