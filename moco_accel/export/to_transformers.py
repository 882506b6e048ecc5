"""Export to transformers: a folder that AutoModel loads, and AutoImageProcessor where it can express the pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from moco_accel.export.trained_encoder import TrainedEncoder, format_json
from moco_accel.pretrained.tensor_names import to_library

_RANGE_OF_8_BITS = ([0.0] * 3, [255.0] * 3)
_LOCAL_SETTINGS = ("_name_or_path", "_attn_implementation", "_attn_implementation_internal")


def write_export(trained: TrainedEncoder, folder: Path) -> None:
    """Write config.json, model.safetensors and, for RGB tiles of 8 bits, preprocessor_config.json."""
    save_file(to_library(trained.encoder.state_dict(), "transformers"), folder / "model.safetensors", {"format": "pt"})
    config = _vit_config(trained) if trained.family == "ViT" else _resnet_config(trained)
    (folder / "config.json").write_text(format_json(config))
    if _has_image_processor(trained):
        (folder / "preprocessor_config.json").write_text(format_json(_image_processor(trained)))


def read_features(folder: Path, trained: TrainedEncoder) -> Callable[[Tensor], Tensor]:
    """Load the export with AutoModel; return a function from pixels to features."""
    from transformers import AutoModel

    if trained.family == "ResNet":
        resnet = AutoModel.from_pretrained(folder).eval()
        return lambda pixels: resnet(pixels).pooler_output.flatten(1)  # type: ignore[no-any-return]
    vit = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    return lambda pixels: vit(pixels).last_hidden_state[:, 0]  # type: ignore[no-any-return]


def loading_snippet(trained: TrainedEncoder) -> str:
    """Return Python code that loads the export."""
    argument, output = "", "pooler_output.flatten(1)"
    if trained.family == "ViT":  # the pooling layer that AutoModel adds by default is untrained
        argument, output = ", add_pooling_layer=False", "last_hidden_state[:, 0]"
    lines = [
        "from transformers import AutoModel",
        f'model = AutoModel.from_pretrained("OUT"{argument}).eval()  # or "USER/NAME"',
        f"features = model(pixels).{output}  # [tiles, {trained.feature_dim}]",
    ]
    if _has_image_processor(trained):
        lines.append('# pixels = AutoImageProcessor.from_pretrained("OUT")(images, return_tensors="pt").pixel_values')
    return "\n".join(lines) + "\n"


def _has_image_processor(trained: TrainedEncoder) -> bool:
    """Image processors of transformers support three bands of 8 bits, but no range per band and no missing data."""
    return trained.recipe.stored_range == _RANGE_OF_8_BITS and trained.recipe.data.nodata is None


def _vit_config(trained: TrainedEncoder) -> dict[str, Any]:
    fields = json.loads(trained.vit_config.to_json_string(use_diff=False))
    kept = {name: value for name, value in fields.items() if name not in _LOCAL_SETTINGS}
    return {**kept, "architectures": ["ViTModel"], "dtype": "float32"}


def _resnet_config(trained: TrainedEncoder) -> dict[str, Any]:
    bottleneck = trained.feature_dim == 2048
    return {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "num_channels": trained.recipe.encoder.bands,
        "embedding_size": 64,
        "hidden_sizes": [256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512],
        "depths": trained.blocks_per_stage,
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,  # torchvision's ResNets have the stride in the 3 x 3 convolution
        "dtype": "float32",
    }


def _image_processor(trained: TrainedEncoder) -> dict[str, Any]:
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
