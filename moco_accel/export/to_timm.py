"""timm: a folder that `timm.create_model('local-dir:OUT')`, the hub and transformers' AutoModel load.

config.json is written here and not by timm's save_for_hf, which adds two things that break loading (timm 1.0.31):
`first_conv`, by which a patch projection for other band counts is drawn anew without a word, and `num_classes` among
the model's arguments, with which AutoModel raises.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from moco_accel.export.trained import Trained, plain_json
from moco_accel.pretrained.tensor_names import renamed


def architecture(trained: Trained) -> tuple[str, dict[str, Any]]:
    """timm's name and what makes it ours."""
    name, bands = trained.recipe.encoder.name, trained.recipe.encoder.bands
    if trained.family == "ResNet":
        if name == "resnet10":  # a ResNet-18 but for its depth
            return "resnet18", {"in_chans": bands, "layers": trained.blocks}
        return name, {"in_chans": bands}
    vit = trained.vit
    sizes = {
        "img_size": vit.image_size,
        "patch_size": vit.patch_size,
        "embed_dim": vit.hidden_size,
        "depth": vit.num_hidden_layers,
        "num_heads": vit.num_attention_heads,  # MoCo v3's ViT-S has 12, timm's 6
    }
    size = name.split("_")[1]
    return f"vit_{size}_patch{14 if size == 'huge' else 16}_224", {"in_chans": bands, **sizes}


def write(trained: Trained, folder: Path) -> None:
    """config.json and model.safetensors with timm's names."""
    save_file(renamed(trained.encoder.state_dict(), "timm"), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(plain_json(_config(trained)))


def features(folder: Path, trained: Trained) -> Callable[[Tensor], Tensor]:
    """What timm makes of the folder."""
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return lambda pixels: model(pixels)  # type: ignore[no-any-return]


def loading(trained: Trained) -> str:
    return (
        "import timm\n"
        'model = timm.create_model("local-dir:OUT", pretrained=True).eval()  # or "hf-hub:USER/NAME"\n'
        f"features = model(pixels)  # [tiles, {trained.feature_dim}]\n"
    )


def _config(trained: Trained) -> dict[str, Any]:
    name, arguments = architecture(trained)
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
