"""Translate an encoder's tensor names to and from transformers, timm and torchvision.

Encoders here use the names of transformers' ViT in memory and of torchvision's ResNets. timm and torchvision store
query, key and value as one tensor, in this order along the first dimension.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

Family = Literal["ViT", "ResNet"]
Library = Literal["transformers", "timm", "torchvision"]
TensorLocation = tuple[str, int | None]
"""A tensor's name in another library, and which third of it is meant; None: the whole tensor."""

_LIBRARIES = ("transformers", "timm", "torchvision")
_VIT = {
    "embeddings.cls_token": ("embeddings.cls_token", "cls_token", "class_token"),
    "embeddings.position_embeddings": ("embeddings.position_embeddings", "pos_embed", "encoder.pos_embedding"),
    "embeddings.patch_embeddings.projection": (
        "embeddings.patch_embeddings.projection",
        "patch_embed.proj",
        "conv_proj",
    ),
    "layernorm": ("layernorm", "norm", "encoder.ln"),
}
_LAYER = ("encoder.layer.{}.", "blocks.{}.", "encoder.layers.encoder_layer_{}.")
_IN_LAYER = {
    "layernorm_before": ("layernorm_before", "norm1", "ln_1"),
    "layernorm_after": ("layernorm_after", "norm2", "ln_2"),
    "attention.q_proj": ("attention.attention.query", "attn.qkv", "self_attention.in_proj"),
    "attention.k_proj": ("attention.attention.key", "attn.qkv", "self_attention.in_proj"),
    "attention.v_proj": ("attention.attention.value", "attn.qkv", "self_attention.in_proj"),
    "attention.o_proj": ("attention.output.dense", "attn.proj", "self_attention.out_proj"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1", "mlp.0"),
    "mlp.fc2": ("output.dense", "mlp.fc2", "mlp.3"),
}
_THIRDS = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_REQUIRED: dict[tuple[Family, Library], set[str]] = {
    ("ViT", "transformers"): {"embeddings.cls_token"},
    ("ViT", "timm"): {"patch_embed.proj.weight", "cls_token"},
    ("ViT", "torchvision"): {"class_token", "conv_proj.weight"},
    ("ResNet", "transformers"): {"embedder.embedder.convolution.weight"},
    ("ResNet", "torchvision"): {"conv1.weight", "layer1.0.conv1.weight"},  # timm uses the same names
}
_RESNET_TO_TRANSFORMERS = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
)


def tensor_location(library: Library, name: str) -> TensorLocation:
    """Return where `library` stores the encoder's tensor `name`."""
    return _vit_location(library, name) if name.startswith("vit.") else (_resnet_name(library, name), None)


def to_library(tensors: Mapping[str, Tensor], library: Library) -> dict[str, Tensor]:
    """Return the encoder's tensors as `library` stores them, contiguous and on the CPU."""
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        theirs, third = tensor_location(library, name)
        parts.setdefault(theirs, {})[third or 0] = tensor.detach().cpu()
    return {
        name: torch.cat([found[i] for i in sorted(found)]).contiguous() if len(found) > 1 else found[0].contiguous()
        for name, found in parts.items()
    }


def from_library(tensors: Mapping[str, Tensor], library: Library, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the encoder's tensors `names` from those of `library`: the inverse of `to_library`.

    Raises:
        KeyError: If a tensor is missing.
    """
    found = {}
    for name in names:
        theirs, third = tensor_location(library, name)
        found[name] = tensors[theirs] if third is None else tensors[theirs].chunk(3)[third]
    return found


def bare_names(names: Collection[str]) -> dict[str, str]:
    """Map names as stored in a file to the names of the library's bare model."""
    result = {}
    for name in names:
        bare = re.sub(r"^(timm_model|vit|resnet|module)\.", "", name)
        bare = re.sub(r"^layers\.(\d+)\.", rf"{_STORED_LAYER}\1.", bare)
        bare = re.sub(r"\.mlp\.linear_([12])\.", lambda found: f".mlp.{3 * (int(found[1]) - 1)}.", bare)
        result[name] = _IN_MEMORY.sub(lambda found: _STORED[found[0]], bare) if bare.startswith(_STORED_LAYER) else bare
    return result


def detect_library(names: set[str]) -> tuple[Family, Library] | None:
    """Return family and library that use these bare names; None if no library does."""
    return next((found for found, required in _REQUIRED.items() if required <= names), None)


_STORED_LAYER = "encoder.layer."
_STORED = {ours: names[0] for ours, names in _IN_LAYER.items() if "." in ours}
_IN_MEMORY = re.compile("|".join(re.escape(name) for name in _STORED))


def _vit_location(library: Library, name: str) -> TensorLocation:
    column, bare = _LIBRARIES.index(library), name.removeprefix("vit.")
    layer = re.match(r"layers\.(\d+)\.", bare)
    table = _IN_LAYER if layer else _VIT
    inside = bare[layer.end() :] if layer else bare
    stem, dot, kind = (inside, "", "") if inside in table else inside.rpartition(".")
    theirs = table[stem][column]
    joint = "_" if theirs.endswith("in_proj") else dot  # torchvision's is a parameter, not a module
    third = _THIRDS.index(stem) if stem in _THIRDS and library != "transformers" else None
    return (_LAYER[column].format(layer[1]) if layer else "") + theirs + joint + kind, third


def _resnet_name(library: Library, name: str) -> str:
    if library != "transformers":
        return name
    for pattern, replacement in _RESNET_TO_TRANSFORMERS:
        name = re.sub(pattern, replacement, name)
    name = re.sub(
        r"\.(conv|bn)(\d)\.",
        lambda m: f".layer.{int(m[2]) - 1}.{'convolution' if m[1] == 'conv' else 'normalization'}.",
        name,
    )
    return re.sub(r"^layer(\d)\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", name)
