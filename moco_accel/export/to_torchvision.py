"""torchvision: model.safetensors with the names of torchvision's ResNets and of its VisionTransformer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moco_accel.export.trained import Trained
from moco_accel.pretrained.tensor_names import renamed


def write(trained: Trained, folder: Path) -> None:
    """model.safetensors; its metadata say what a ViT's tensors do not, the number of heads."""
    metadata = {"format": "pt"}
    if trained.family == "ViT":
        metadata["arguments"] = json.dumps(_vit_arguments(trained))
    save_file(renamed(trained.encoder.state_dict(), "torchvision"), folder / "model.safetensors", metadata)


def features(folder: Path, trained: Trained) -> Callable[[Tensor], Tensor]:
    """What torchvision makes of the file: all tensors but the classifier's, which there is none of."""
    model = _vit(trained) if trained.family == "ViT" else _resnet(trained)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.eval()
    return lambda pixels: model(pixels)  # type: ignore[no-any-return]


def loading(trained: Trained) -> str:
    bands = trained.recipe.encoder.bands
    lines = ["import torch, torchvision", "from safetensors.torch import load_file"]
    if trained.family == "ViT":
        vit, arguments = trained.vit, ", ".join(f"{name}={value}" for name, value in _vit_arguments(trained).items())
        lines.append(f"model = torchvision.models.VisionTransformer({arguments})")
        if bands != 3:  # torchvision has no argument for it
            size = vit.patch_size
            lines.append(f"model.conv_proj = torch.nn.Conv2d({bands}, {vit.hidden_size}, {size}, {size})")
        head = "heads"
    else:
        lines.append(f"model = {_resnet_call(trained)}")
        if bands != 3:
            lines.append(f"model.conv1 = torch.nn.Conv2d({bands}, 64, 7, 2, 3, bias=False)")
        head = "fc"
    lines += [
        f"model.{head} = torch.nn.Identity()  # features; with a classifier of yours: strict=False, for {head} alone",
        'model.load_state_dict(load_file("OUT/model.safetensors"))',
        f"features = model.eval()(pixels)  # [tiles, {trained.feature_dim}]",
    ]
    return "\n".join(lines) + "\n"


def _vit_arguments(trained: Trained) -> dict[str, int]:
    vit = trained.vit
    return {
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        "num_layers": vit.num_hidden_layers,
        "num_heads": vit.num_attention_heads,
        "hidden_dim": vit.hidden_size,
        "mlp_dim": vit.intermediate_size,
    }


def _vit(trained: Trained) -> nn.Module:
    import torchvision

    model: Any = torchvision.models.VisionTransformer(**_vit_arguments(trained))
    patch = trained.vit.patch_size
    model.conv_proj = nn.Conv2d(trained.recipe.encoder.bands, trained.vit.hidden_size, patch, patch)
    model.heads = nn.Identity()
    return model  # type: ignore[no-any-return]


def _resnet_call(trained: Trained) -> str:
    if trained.recipe.encoder.name == "resnet10":  # torchvision has the parts and no name for it
        return "torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])"
    return f"torchvision.models.{trained.recipe.encoder.name}()"


def _resnet(trained: Trained) -> nn.Module:
    import torchvision
    from torchvision.models.resnet import BasicBlock

    name = trained.recipe.encoder.name
    own = name == "resnet10"
    model: Any = (
        torchvision.models.ResNet(BasicBlock, trained.blocks)
        if own
        else torchvision.models.get_model(name, weights=None)
    )
    model.conv1 = nn.Conv2d(trained.recipe.encoder.bands, 64, kernel_size=7, stride=2, padding=3, bias=False)
    model.fc = nn.Identity()
    return model  # type: ignore[no-any-return]
