"""One encoder's tensors by the names of four libraries: ours, transformers', timm's and torchvision's.

Ours are those of `VisionTransformer` (transformers' ViT in memory) and of torchvision's ResNets. Query, key and value
are one tensor in timm and torchvision, in this order along the first dimension.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

Library = Literal["transformers", "timm", "torchvision"]
Place = tuple[str, int | None]
"""A tensor's name in another library, and which third of it is meant; None: all of it."""

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
_RESNET_TO_TRANSFORMERS = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
)


def place_in(library: Library, name: str) -> Place:
    """Where `library` keeps our tensor `name`."""
    return _vit_place(library, name) if name.startswith("vit.") else (_resnet_name(library, name), None)


def renamed(tensors: Mapping[str, Tensor], library: Library) -> dict[str, Tensor]:
    """Our encoder's state as `library` keeps it, contiguous and on the CPU."""
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        theirs, third = place_in(library, name)
        parts.setdefault(theirs, {})[third or 0] = tensor.detach().cpu()
    return {
        name: torch.cat([found[i] for i in sorted(found)]).contiguous() if len(found) > 1 else found[0].contiguous()
        for name, found in parts.items()
    }


def restored(tensors: Mapping[str, Tensor], library: Library, names: Iterable[str]) -> dict[str, Tensor]:
    """The reverse of `renamed`: our tensors `names` out of theirs. Raises KeyError with the name of one that lacks."""
    found = {}
    for name in names:
        theirs, third = place_in(library, name)
        whole = tensors[theirs]
        found[name] = whole if third is None else whole.chunk(3)[third]
    return found


def without_prefix(names: Collection[str]) -> dict[str, str]:
    """Names as they are stored → names as the libraries' bare models have them."""
    plain = {}
    for name in names:
        bare = re.sub(r"^(timm_model|vit|resnet|module)\.", "", name)
        bare = re.sub(r"^layers\.(\d+)\.", _as_stored, bare)
        bare = re.sub(r"\.mlp\.linear_([12])\.", lambda found: f".mlp.{3 * (int(found[1]) - 1)}.", bare)
        plain[name] = _IN_MEMORY.sub(lambda found: _STORED[found[0]], bare) if bare.startswith(_STORED_LAYER) else bare
    return plain


def library_of(names: Collection[str]) -> tuple[Literal["ViT", "ResNet"], Library] | None:
    """Whose names these are, without prefix; None where nobody's."""
    if "embeddings.cls_token" in names:
        return "ViT", "transformers"
    if "patch_embed.proj.weight" in names and "cls_token" in names:
        return "ViT", "timm"
    if "class_token" in names and "conv_proj.weight" in names:
        return "ViT", "torchvision"
    if "embedder.embedder.convolution.weight" in names:
        return "ResNet", "transformers"
    if "conv1.weight" in names and "layer1.0.conv1.weight" in names:
        return "ResNet", "torchvision"  # and timm: they share all names
    return None


_STORED_LAYER = "encoder.layer."
_STORED = {ours: names[0] for ours, names in _IN_LAYER.items() if "." in ours}
_IN_MEMORY = re.compile("|".join(re.escape(name) for name in _STORED))


def _as_stored(found: re.Match[str]) -> str:
    return f"{_STORED_LAYER}{found[1]}."


def _vit_place(library: Library, name: str) -> Place:
    column, bare = _LIBRARIES.index(library), name.removeprefix("vit.")
    layer = re.match(r"layers\.(\d+)\.", bare)
    table = _IN_LAYER if layer else _VIT
    inside = bare[layer.end() :] if layer else bare
    stem, dot, kind = (inside, "", "") if inside in table else inside.rpartition(".")
    theirs = table[stem][column]
    joint = "_" if theirs.endswith("in_proj") else dot  # torchvision's is no module
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
