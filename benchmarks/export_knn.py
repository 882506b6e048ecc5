"""Compare kNN predictions of a run's encoder with those of each of its exports, loaded in the other library.

One JSON row for each format: test tiles classified correctly by the trainer's encoder and by the export, and the
largest difference of features.

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

from moco_accel.evaluation.features import extract_features
from moco_accel.evaluation.knn import predict_by_knn
from moco_accel.evaluation.labelled_tiles import open_labelled_tiles
from moco_accel.export.export import export_encoder, get_format
from moco_accel.export.trained_encoder import find_trained_encoder

FORMATS = ("transformers", "torchvision", "timm", "torchgeo", "onnx")


class ExportedEncoder(nn.Module):
    """An export, computed by another library."""

    def __init__(self, features: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features(pixels)


def main(run: Annotated[Path, typer.Argument(help="Run whose recipe names labelled tiles.")]) -> None:
    trained = find_trained_encoder(run, "latest")
    recipe, tiles = trained.recipe, open_labelled_tiles(trained.recipe)
    train_labels, truth = tiles.labels.split([len(side) for side in tiles.sources])

    def evaluate(encoder: nn.Module) -> tuple[Tensor, Tensor]:
        """Return which test tiles are classified correctly [test tiles], and all features [tiles, feature_dim]."""
        train, test = (extract_features(encoder, side, recipe, "cpu") for side in tiles.sources)
        predicted = predict_by_knn(train, train_labels, test, len(tiles.names), recipe.evaluation)
        return predicted == truth, torch.cat([train, test])

    own_correct, own_features = evaluate(trained.encoder)
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            export_format = get_format(name)
            export_encoder(trained, Path(folder) / "out", export_format)
            with torch.no_grad():
                loaded = ExportedEncoder(export_format.read_features(Path(folder) / "out", trained))
                correct, features = evaluate(loaded)
        row = {
            "format": name,
            "encoder": recipe.encoder.name,
            "test_tiles": len(truth),
            "right": int(correct.sum()),
            "right_in_the_trainer": int(own_correct.sum()),
            "same_tiles": bool((correct == own_correct).all()),
            "largest_difference": float((features - own_features).abs().max()),
            "largest_feature": float(own_features.abs().max()),
            export_format.reader: version(export_format.reader),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    typer.run(main)
