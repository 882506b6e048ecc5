"""What the tests of moco-export share: a saved run whose encoder no library could guess."""

from __future__ import annotations

from pathlib import Path

import torch
from support.recipes import small_recipe
from support.saved_runs import SavedRun
from torch import nn

from moco_accel.export.trained import Trained, find_trained

BANDS13 = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]
REFLECTANCE = {
    "bands": BANDS13,
    "scaling": "reflectance",
    "nodata": 0.0,
    "mean": [0.1 + 0.01 * band for band in range(13)],
    "std": [0.05 + 0.01 * band for band in range(13)],
}


@torch.no_grad()
def shake(module: nn.Module, seed: int = 0) -> None:
    """Every number another: biases of 0, norms of 1 and blocks that add nothing would hide what is mixed up."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * (0.2 if tensor.ndim < 2 else 0.02))


def saved_run(run: Path, name: str, bands: int = 3, image_size: int = 32) -> Path:
    """A run of one checkpoint, after step 1, of an encoder that was shaken."""
    data = REFLECTANCE if bands == 13 else {}
    recipe = small_recipe(encoder={"name": name, "image_size": image_size, "bands": bands}, data=data)
    saved = SavedRun(run, recipe)
    saved.train(1)
    shake(saved.moco.encoder)
    saved.save()
    return run


def trained_encoder(run: Path, name: str, bands: int = 3) -> Trained:
    return find_trained(saved_run(run, name, bands), "latest")
