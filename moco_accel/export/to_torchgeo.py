"""Export to torchgeo: a .pth with timm's tensor names, and weights.py with a WeightsEnum for torchgeo's trainers.

torch hub loads only files of torch.save; weights.py loads this one as plain tensors. torchgeo's trainers build a model
from the name of a timm model alone. weights.py therefore registers this encoder under a name of its own: timm's ViT-S
has 6 heads where MoCo v3's has 12, and timm's models take 224 pixels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco_accel.export.to_timm import timm_architecture
from moco_accel.export.trained_encoder import TrainedEncoder, preprocessing
from moco_accel.pretrained.tensor_names import to_library

_HASH_DIGITS = 8  # torch hub compares them


def write_export(trained: TrainedEncoder, folder: Path) -> None:
    """Write NAME-HASH.pth and weights.py."""
    unnamed = folder / "model.pth"
    torch.save(to_library(trained.encoder.state_dict(), "timm"), unnamed)
    digest = hashlib.sha256()
    with unnamed.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    file_name = f"{_model_name(trained)}-{digest.hexdigest()[:_HASH_DIGITS]}.pth"
    unnamed.rename(folder / file_name)
    (folder / "weights.py").write_text(_weights_module(trained, file_name))


def read_features(folder: Path, trained: TrainedEncoder) -> Callable[[Tensor], Tensor]:
    """Load the export with weights.py and timm, as torchgeo's trainers do; return a function to features."""
    import timm

    weights = import_weights_module(folder).MocoAccel_Weights.PRETRAINED
    model = timm.create_model(_model_name(trained), num_classes=0, in_chans=trained.recipe.encoder.bands).eval()
    model.load_state_dict(weights.get_state_dict(progress=False))
    return lambda pixels: model(pixels)  # type: ignore[no-any-return]


def import_weights_module(folder: Path) -> Any:
    """Import the weights.py of an export."""
    spec = importlib.util.spec_from_file_location("moco_accel_exported_weights", folder / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # timm looks up a registered model's module here
    spec.loader.exec_module(module)
    return module


def loading_snippet(trained: TrainedEncoder) -> str:
    """Return Python code that loads the export."""
    return (
        'import sys; sys.path.insert(0, "OUT")\n'
        "from torchgeo.trainers import ClassificationTask\n"
        "from weights import MocoAccel_Weights\n"
        "weights = MocoAccel_Weights.PRETRAINED  # .transforms normalises the stored values of a sample\n"
        'name, bands = weights.meta["model"], weights.meta["in_chans"]\n'
        "task = ClassificationTask(name, weights, in_channels=bands, num_classes=10)\n"
    )


def _model_name(trained: TrainedEncoder) -> str:
    """Name under which weights.py registers the encoder with timm."""
    config = trained.recipe.encoder
    return f"moco_accel_{config.name}_{config.image_size}px_{config.bands}bands"


def _weights_module(trained: TrainedEncoder, file_name: str) -> str:
    name, arguments = timm_architecture(trained)
    scaling = preprocessing(trained.recipe)
    meta = {
        "dataset": trained.recipe.data.source,
        "model": _model_name(trained),
        "in_chans": trained.recipe.encoder.bands,
        "bands": scaling["bands"],
        "ssl_method": "moco",
        "img_size": trained.recipe.encoder.image_size,
        "publication": "https://arxiv.org/abs/2104.02057",
    }
    kept = ("low", "high", "nodata", "nodata_in", "mean", "std")
    return string.Template(_TEMPLATE).substitute(
        FILE_NAME=repr(file_name),
        META=repr(meta),
        SCALING=repr({**{key: scaling[key] for key in kept}, "size": scaling["image_size"]}),
        ARCHITECTURE=repr(name),
        ARGUMENTS=repr(arguments),
        MODEL=_model_name(trained),
    )


_TEMPLATE = '''"""Pretrained weights for torchgeo, written by moco-export."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models._api import Weights, WeightsEnum

FOLDER = Path(__file__).resolve().parent
META: dict[str, Any] = $META
SCALING: dict[str, Any] = $SCALING


class Normalise(nn.Module):
    """Normalise stored values [..., bands, height, width], given as a tensor or as the "image" of a sample."""

    def forward(self, sample: Any) -> Any:
        if isinstance(sample, dict):
            return {**sample, "image": self(sample["image"])}
        columns = {key: torch.tensor(SCALING[key])[:, None, None] for key in ("low", "high", "mean", "std")}
        low, high, mean, std = (columns[key].to(sample.device) for key in ("low", "high", "mean", "std"))
        pixels = ((sample.float() - low) / (high - low)).clamp(0, 1)
        empty = ~sample.isfinite().all(-3, True)
        if SCALING["nodata"] is not None:
            marked = sample == SCALING["nodata"]
            empty = empty | (marked.all(-3, True) if SCALING["nodata_in"] == "all bands" else marked.any(-3, True))
        pixels = torch.where(empty, mean, pixels)
        many = pixels.reshape(-1, *pixels.shape[-3:])
        size = (SCALING["size"], SCALING["size"])
        if many.shape[-2:] != size:
            many = interpolate(many, size=size, mode="bilinear", antialias=True)
        return (many.reshape(*pixels.shape[:-2], *size) - mean) / std


class MocoAccel_Weights(WeightsEnum):
    """Weights of the encoder that this file registers with timm as META["model"]."""

    PRETRAINED = Weights(url=(FOLDER / $FILE_NAME).as_uri(), transforms=Normalise(), meta=META)

    def get_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load the tensors from this folder, as plain tensors only."""
        return super().get_state_dict(*args, **{"model_dir": str(FOLDER), "weights_only": True, **kwargs})


def $MODEL(pretrained: bool = False, **arguments: Any) -> nn.Module:
    arguments.pop("pretrained_cfg", None), arguments.pop("pretrained_cfg_overlay", None)
    arguments.pop("cache_dir", None)
    return timm.create_model($ARCHITECTURE, pretrained=False, **{**$ARGUMENTS, **arguments})


if not timm.is_model("$MODEL"):  # another export may have registered the same architecture
    timm.models.register_model($MODEL)
'''
