"""A run's encoder through every export format: loaded in the other library, does it get the same labelled tiles right?

One row for each format: tiles right of all test tiles, as the trainer's own encoder and as the export, and the largest
difference of features.

    python benchmarks/export_knn.py runs/demo >> benchmarks/results/export_knn.jsonl
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from moco_accel.evaluation.baselines import open_labelled
from moco_accel.evaluation.features import extract_features, knn_predictions
from moco_accel.export.exporting import export, format_named
from moco_accel.export.trained import find_trained

FORMATS = {
    "transformers": "transformers",
    "torchvision": "torchvision",
    "timm": "timm",
    "torchgeo": "timm",
    "onnx": "onnxruntime",
}


class Loaded(nn.Module):
    """An export as another library computes it."""

    def __init__(self, features: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features(pixels)


def main(run: Annotated[Path, typer.Argument(help="A run whose recipe names labelled tiles.")]) -> None:
    trained = find_trained(run, "latest")
    recipe, tiles = trained.recipe, open_labelled(trained.recipe)
    evaluation = recipe.evaluation

    def judge(encoder: nn.Module) -> tuple[Tensor, Tensor]:
        """Which test tiles are right, and all features."""
        train, test = (extract_features(encoder, side, recipe, "cpu") for side in (tiles.train, tiles.test))
        found = knn_predictions(
            train,
            tiles.train_labels,
            test,
            evaluation.neighbours,
            evaluation.temperature,
            len(tiles.names),
            "cosine",
        )
        return found == tiles.test_labels, torch.cat([train, test])

    own_right, own = judge(trained.encoder)
    for name, library in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            chosen = format_named(name)
            export(trained, Path(folder) / "out", chosen)
            with torch.no_grad():
                right, features = judge(Loaded(chosen.features(Path(folder) / "out", trained)))
        row = {
            "format": name,
            "encoder": recipe.encoder.name,
            "test_tiles": len(tiles.test),
            "right": int(right.sum()),
            "right_in_the_trainer": int(own_right.sum()),
            "same_tiles": bool((right == own_right).all()),
            "largest_difference": float((features - own).abs().max()),
            "largest_feature": float(own.abs().max()),
            library: version(library),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    typer.run(main)
