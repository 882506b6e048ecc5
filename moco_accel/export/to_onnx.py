"""Export to ONNX: one file that maps `pixels` [tiles, bands, height, width] to `features` [tiles, feature_dim]."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco_accel.export.trained_encoder import TrainedEncoder, preprocessing, random_pixels


def write_export(trained: TrainedEncoder, folder: Path) -> None:
    """Write model.onnx with weights, a dynamic number of tiles, and the preprocessing in its metadata."""
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # the exporter warns of its own code
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            trained.encoder,
            (random_pixels(trained),),
            dynamo=True,
            input_names=["pixels"],
            output_names=["features"],
            opset_version=20,
            dynamic_shapes=({0: torch.export.Dim("tiles")},),
            verbose=False,
        )
    model = program.model_proto
    onnx.helper.set_model_props(model, {"preprocessing": json.dumps(preprocessing(trained.recipe))})
    onnx.save(model, str(folder / "model.onnx"))


def read_features(folder: Path, trained: TrainedEncoder) -> Callable[[Tensor], Tensor]:
    """Load the export in onnxruntime; return a function from pixels to features."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["features"], {"pixels": pixels.numpy()})[0])


def loading_snippet(trained: TrainedEncoder) -> str:
    """Return Python code that loads the export."""
    return (
        "import onnxruntime\n"
        'model = onnxruntime.InferenceSession("OUT/model.onnx")\n'
        'features = model.run(["features"], {"pixels": pixels})[0]'
        f"  # pixels: a numpy array of float32; features: [tiles, {trained.feature_dim}]\n"
    )
