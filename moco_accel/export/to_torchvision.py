"""Export to torchvision: model.safetensors with the tensor names of its ResNets and its VisionTransformer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moco_accel.export.trained_encoder import TrainedEncoder
from moco_accel.pretrained.tensor_names import to_library


def write_export(trained: TrainedEncoder, folder: Path) -> None:
    """Write model.safetensors; its metadata hold a ViT's arguments, since no tensor shows the number of heads."""
    metadata = {"format": "pt"}
    if trained.family == "ViT":
        metadata["arguments"] = json.dumps(_vit_arguments(trained))
    save_file(to_library(trained.encoder.state_dict(), "torchvision"), folder / "model.safetensors", metadata)


def read_features(folder: Path, trained: TrainedEncoder) -> Callable[[Tensor], Tensor]:
    """Load the export in torchvision without a classifier; return a function from pixels to features."""
    from torchvision.models import VisionTransformer, get_model
    from torchvision.models.resnet import BasicBlock, ResNet

    name, bands = trained.recipe.encoder.name, trained.recipe.encoder.bands
    model: Any
    if trained.family == "ViT":
        vit = trained.vit_config
        model = VisionTransformer(**_vit_arguments(trained))
        model.conv_proj = nn.Conv2d(bands, vit.hidden_size, vit.patch_size, vit.patch_size)
        model.heads = nn.Identity()
    else:
        model = ResNet(BasicBlock, trained.blocks_per_stage) if name == "resnet10" else get_model(name, weights=None)
        model.conv1 = nn.Conv2d(bands, 64, kernel_size=7, stride=2, padding=3, bias=False)
        model.fc = nn.Identity()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.eval()
    return lambda pixels: model(pixels)  # type: ignore[no-any-return]


def loading_snippet(trained: TrainedEncoder) -> str:
    """Return Python code that loads the export."""
    name, bands = trained.recipe.encoder.name, trained.recipe.encoder.bands
    lines = ["import torch, torchvision", "from safetensors.torch import load_file"]
    if trained.family == "ViT":
        vit = trained.vit_config
        arguments = ", ".join(f"{argument}={value}" for argument, value in _vit_arguments(trained).items())
        lines.append(f"model = torchvision.models.VisionTransformer({arguments})")
        projection = f"conv_proj = torch.nn.Conv2d({bands}, {vit.hidden_size}, {vit.patch_size}, {vit.patch_size})"
        head = "heads"
    else:
        # torchvision has no name for a ResNet-10
        call = "ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])" if name == "resnet10" else f"{name}()"
        lines.append(f"model = torchvision.models.{call}")
        projection = f"conv1 = torch.nn.Conv2d({bands}, 64, 7, 2, 3, bias=False)"
        head = "fc"
    if bands != 3:  # torchvision has no argument for it
        lines.append(f"model.{projection}")
    lines += [
        f"model.{head} = torch.nn.Identity()  # to keep a classifier, load with strict=False; only {head} is missing",
        'model.load_state_dict(load_file("OUT/model.safetensors"))',
        f"features = model.eval()(pixels)  # [tiles, {trained.feature_dim}]",
    ]
    return "\n".join(lines) + "\n"


def _vit_arguments(trained: TrainedEncoder) -> dict[str, int]:
    vit = trained.vit_config
    return {
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        "num_layers": vit.num_hidden_layers,
        "num_heads": vit.num_attention_heads,
        "hidden_dim": vit.hidden_size,
        "mlp_dim": vit.intermediate_size,
    }
