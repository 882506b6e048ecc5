"""A saved run whose encoder weights differ from every initial value, for the tests of moco-export."""

from __future__ import annotations

from pathlib import Path

import torch
from support.recipes import small_recipe
from support.saved_runs import SavedRun
from torch import nn

from moco_accel.export.export import export_encoder, get_format
from moco_accel.export.trained_encoder import TrainedEncoder, find_trained_encoder

BANDS13 = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]
REFLECTANCE = {
    "bands": BANDS13,
    "scaling": "reflectance",
    "nodata": 0.0,
    "mean": [0.1 + 0.01 * band for band in range(13)],
    "std": [0.05 + 0.01 * band for band in range(13)],
}


@torch.no_grad()
def perturb(module: nn.Module, seed: int = 0) -> None:
    """Change every number: biases of 0, norms of 1 and zero-initialised blocks would hide swapped tensors."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * (0.2 if tensor.ndim < 2 else 0.02))


def saved_run(run: Path, name: str, bands: int = 3, image_size: int = 32) -> Path:
    """Save a run with one checkpoint, after step 1, of a perturbed encoder; return its folder."""
    data = REFLECTANCE if bands == 13 else {}
    recipe = small_recipe(encoder={"name": name, "image_size": image_size, "bands": bands}, data=data)
    saved = SavedRun(run, recipe)
    saved.train(1)
    perturb(saved.moco.encoder)
    saved.save()
    return run


def trained_encoder(run: Path, name: str, bands: int = 3) -> TrainedEncoder:
    return find_trained_encoder(saved_run(run, name, bands), "latest")


def export_and_compare(trained: TrainedEncoder, out: Path, format_name: str) -> float:
    """Export and return the largest difference of the features read back."""
    difference = export_encoder(trained, out, get_format(format_name))
    assert difference is not None
    return difference
