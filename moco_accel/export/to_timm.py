"""Export to timm: a folder that `timm.create_model('local-dir:OUT')`, the hub and transformers' AutoModel load.

config.json is written here because timm's save_for_hf (1.0.31) adds two entries that break loading. With `first_conv`,
timm silently reinitialises a patch projection of other than 3 bands. With `num_classes` among the model's arguments,
AutoModel raises.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from moco_accel.export.trained_encoder import TrainedEncoder, format_json
from moco_accel.pretrained.tensor_names import to_library


def timm_architecture(trained: TrainedEncoder) -> tuple[str, dict[str, Any]]:
    """Return the name of the timm model and the arguments that make it this encoder."""
    name, bands = trained.recipe.encoder.name, trained.recipe.encoder.bands
    if trained.family == "ResNet":
        if name == "resnet10":  # timm has no name for it
            return "resnet18", {"in_chans": bands, "layers": trained.blocks_per_stage}
        return name, {"in_chans": bands}
    vit = trained.vit_config
    sizes = {
        "img_size": vit.image_size,
        "patch_size": vit.patch_size,
        "embed_dim": vit.hidden_size,
        "depth": vit.num_hidden_layers,
        "num_heads": vit.num_attention_heads,  # MoCo v3's ViT-S has 12, timm's has 6
    }
    size = name.split("_")[1]
    return f"vit_{size}_patch{14 if size == 'huge' else 16}_224", {"in_chans": bands, **sizes}


def write_export(trained: TrainedEncoder, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    save_file(to_library(trained.encoder.state_dict(), "timm"), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(format_json(_config(trained)))


def read_features(folder: Path, trained: TrainedEncoder) -> Callable[[Tensor], Tensor]:
    """Load the export in timm; return a function from pixels to features."""
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return lambda pixels: model(pixels)  # type: ignore[no-any-return]


def loading_snippet(trained: TrainedEncoder) -> str:
    """Return Python code that loads the export."""
    return (
        "import timm\n"
        'model = timm.create_model("local-dir:OUT", pretrained=True).eval()  # or "hf-hub:USER/NAME"\n'
        f"features = model(pixels)  # [tiles, {trained.feature_dim}]\n"
    )


def _config(trained: TrainedEncoder) -> dict[str, Any]:
    name, arguments = timm_architecture(trained)
    mean, std = trained.recipe.normalisation
    is_vit = trained.family == "ViT"
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": trained.feature_dim,
        "global_pool": "token" if is_vit else "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "moco_accel",
            "custom_load": False,
            "input_size": list(trained.input_shape),
            "fixed_input_size": is_vit,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": mean,
            "std": std,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": None,
            "classifier": "head" if is_vit else "fc",
        },
    }
