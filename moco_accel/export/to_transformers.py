"""transformers: a folder that AutoModel loads, and AutoImageProcessor where it can say what the pixels are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from moco_accel.export.trained import Trained, plain_json
from moco_accel.pretrained.tensor_names import renamed

_BYTES = ([0.0] * 3, [255.0] * 3)


def write(trained: Trained, folder: Path) -> None:
    """config.json, model.safetensors and, for RGB tiles of 8 bits, preprocessor_config.json."""
    save_file(renamed(trained.encoder.state_dict(), "transformers"), folder / "model.safetensors", {"format": "pt"})
    config = _vit_config(trained) if trained.family == "ViT" else _resnet_config(trained)
    (folder / "config.json").write_text(plain_json(config))
    if has_processor(trained):
        (folder / "preprocessor_config.json").write_text(plain_json(_processor(trained)))


def has_processor(trained: Trained) -> bool:
    """transformers' processors know three bands of 8 bits; no range per band, no missing data."""
    return trained.recipe.stored_range == _BYTES and trained.recipe.data.nodata is None


def features(folder: Path, trained: Trained) -> Callable[[Tensor], Tensor]:
    """What AutoModel makes of the folder."""
    from transformers import AutoModel

    if trained.family == "ResNet":
        resnet = AutoModel.from_pretrained(folder).eval()
        return lambda pixels: resnet(pixels).pooler_output.flatten(1)  # type: ignore[no-any-return]
    vit = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    return lambda pixels: vit(pixels).last_hidden_state[:, 0]  # type: ignore[no-any-return]


def loading(trained: Trained) -> str:
    lines = ["from transformers import AutoModel"]
    if trained.family == "ResNet":
        lines += ['model = AutoModel.from_pretrained("OUT").eval()  # or "USER/NAME"']
        lines += [f"features = model(pixels).pooler_output.flatten(1)  # [tiles, {trained.feature_dim}]"]
    else:
        # the pooling layer that AutoModel adds by itself is not trained
        lines += ['model = AutoModel.from_pretrained("OUT", add_pooling_layer=False).eval()  # or "USER/NAME"']
        lines += [f"features = model(pixels).last_hidden_state[:, 0]  # [tiles, {trained.feature_dim}]"]
    if has_processor(trained):
        lines.append('# pixels = AutoImageProcessor.from_pretrained("OUT")(images, return_tensors="pt").pixel_values')
    return "\n".join(lines) + "\n"


def _vit_config(trained: Trained) -> dict[str, Any]:
    fields = json.loads(trained.vit.to_json_string(use_diff=False))
    of_this_machine = ("_name_or_path", "_attn_implementation", "_attn_implementation_internal")
    kept = {name: value for name, value in fields.items() if name not in of_this_machine}
    return {**kept, "architectures": ["ViTModel"], "dtype": "float32"}


def _resnet_config(trained: Trained) -> dict[str, Any]:
    bottleneck = trained.feature_dim == 2048
    return {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "num_channels": trained.recipe.encoder.bands,
        "embedding_size": 64,
        "hidden_sizes": [256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512],
        "depths": trained.blocks,
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,  # as torchvision: the stride is in the 3 x 3
        "dtype": "float32",
    }


def _processor(trained: Trained) -> dict[str, Any]:
    mean, std = trained.recipe.normalisation
    size = trained.recipe.encoder.image_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
