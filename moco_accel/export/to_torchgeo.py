"""torchgeo: a .pth with timm's names, and weights.py with the WeightsEnum that torchgeo's trainers take.

torch hub reads nothing but what torch.save writes; weights.py reads it back as plain tensors, and nothing else does.
torchgeo's trainers build a model by timm's name alone: weights.py gives this encoder a name of its own there, for
timm's ViT-S has 6 heads and MoCo v3's 12, and timm's sizes are of 224 pixels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco_accel.export.to_timm import architecture
from moco_accel.export.trained import Trained, preprocessing
from moco_accel.pretrained.tensor_names import renamed

_HASH_DIGITS = 8  # as torch hub checks


def model_name(trained: Trained) -> str:
    """How timm, and so torchgeo, calls the encoder once weights.py is imported."""
    config = trained.recipe.encoder
    return f"moco_accel_{config.name}_{config.image_size}px_{config.bands}bands"


def write(trained: Trained, folder: Path) -> None:
    """NAME-HASH.pth and weights.py."""
    unnamed = folder / "model.pth"
    torch.save(renamed(trained.encoder.state_dict(), "timm"), unnamed)
    file_name = f"{model_name(trained)}-{_sha256(unnamed)[:_HASH_DIGITS]}.pth"
    unnamed.rename(folder / file_name)
    (folder / "weights.py").write_text(_source(trained, file_name))


def features(folder: Path, trained: Trained) -> Callable[[Tensor], Tensor]:
    """What timm makes of the file, by weights.py, as torchgeo's trainers do."""
    import timm

    weights = imported(folder).MocoAccel_Weights.PRETRAINED
    bands = trained.recipe.encoder.bands
    model = timm.create_model(model_name(trained), num_classes=0, in_chans=bands).eval()
    model.load_state_dict(weights.get_state_dict(progress=False))
    return lambda pixels: model(pixels)  # type: ignore[no-any-return]


def imported(folder: Path) -> Any:
    """weights.py as a module."""
    spec = importlib.util.spec_from_file_location("moco_accel_exported_weights", folder / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where timm looks for what it registers
    spec.loader.exec_module(module)
    return module


def loading(trained: Trained) -> str:
    return (
        'import sys; sys.path.insert(0, "OUT")\n'
        "from torchgeo.trainers import ClassificationTask\n"
        "from weights import MocoAccel_Weights\n"
        "weights = MocoAccel_Weights.PRETRAINED  # .transforms makes a sample's stored values pixels\n"
        'name, bands = weights.meta["model"], weights.meta["in_chans"]\n'
        "task = ClassificationTask(name, weights, in_channels=bands, num_classes=10)\n"
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _source(trained: Trained, file_name: str) -> str:
    """weights.py."""
    name, arguments = architecture(trained)
    facts = preprocessing(trained.recipe)
    meta = {
        "dataset": trained.recipe.data.source,
        "model": model_name(trained),
        "in_chans": trained.recipe.encoder.bands,
        "bands": facts["bands"],
        "ssl_method": "moco",
        "img_size": trained.recipe.encoder.image_size,
        "publication": "https://arxiv.org/abs/2104.02057",
    }
    scaling = {key: facts[key] for key in ("low", "high", "nodata", "nodata_in", "mean", "std")}
    filled = {
        "FILE_NAME": repr(file_name),
        "META": repr(meta),
        "SCALING": repr({**scaling, "size": facts["image_size"]}),
        "ARCHITECTURE": repr(name),
        "ARGUMENTS": repr(arguments),
        "MODEL": model_name(trained),
    }
    source = _TEMPLATE
    for word, value in filled.items():
        source = source.replace(f"<{word}>", value)
    return source


_TEMPLATE = '''"""Pretrained weights for torchgeo, written by moco-export."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models._api import Weights, WeightsEnum

FOLDER = Path(__file__).resolve().parent
META: dict[str, Any] = <META>
SCALING: dict[str, Any] = <SCALING>


class Normalise(nn.Module):
    """Stored values [..., bands, height, width] to what the encoder takes; a sample's dictionary, or a tensor."""

    def forward(self, sample: Any) -> Any:
        if isinstance(sample, dict):
            return {**sample, "image": self(sample["image"])}
        columns = {key: torch.tensor(SCALING[key])[:, None, None] for key in ("low", "high", "mean", "std")}
        low, high, mean, std = (columns[key].to(sample.device) for key in ("low", "high", "mean", "std"))
        pixels = ((sample.float() - low) / (high - low)).clamp(0, 1)
        if SCALING["nodata"] is not None:
            marked = sample == SCALING["nodata"]
            empty = marked.all(-3, True) if SCALING["nodata_in"] == "all bands" else marked.any(-3, True)
            pixels = torch.where(empty, mean, pixels)
        many = pixels.reshape(-1, *pixels.shape[-3:])
        size = (SCALING["size"], SCALING["size"])
        if many.shape[-2:] != size:
            many = interpolate(many, size=size, mode="bilinear", antialias=True)
        return (many.reshape(*pixels.shape[:-2], *size) - mean) / std


class MocoAccel_Weights(WeightsEnum):
    """Of the encoder that timm knows by META["model"] once this file is imported."""

    PRETRAINED = Weights(url=(FOLDER / <FILE_NAME>).as_uri(), transforms=Normalise(), meta=META)

    def get_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The tensors: read where they lie, as plain tensors only."""
        return super().get_state_dict(*args, **{"model_dir": str(FOLDER), "weights_only": True, **kwargs})


def <MODEL>(pretrained: bool = False, **arguments: Any) -> nn.Module:
    arguments.pop("pretrained_cfg", None), arguments.pop("pretrained_cfg_overlay", None)
    arguments.pop("cache_dir", None)
    return timm.create_model(<ARCHITECTURE>, pretrained=False, **{**<ARGUMENTS>, **arguments})


if not timm.is_model("<MODEL>"):  # another export's of the same architecture
    timm.models.register_model(<MODEL>)
'''
