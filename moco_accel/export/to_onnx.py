"""ONNX: one file, `pixels` [tiles, bands, height, width] → `features` [tiles, feature_dim]."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco_accel.export.trained import Trained, preprocessing, random_pixels

OPSET = 20


def write(trained: Trained, folder: Path) -> None:
    """model.onnx, weights inside; any number of tiles at once; what its pixels are stands in its metadata."""
    import onnx

    tiles = torch.export.Dim("tiles")
    with _quiet():
        program: Any = torch.onnx.export(
            trained.encoder,
            (random_pixels(trained),),
            dynamo=True,
            input_names=["pixels"],
            output_names=["features"],
            opset_version=OPSET,
            dynamic_shapes=({0: tiles},),
            verbose=False,
        )
    model = program.model_proto
    onnx.helper.set_model_props(model, {"preprocessing": json.dumps(preprocessing(trained.recipe))})
    onnx.save(model, str(folder / "model.onnx"))


def features(folder: Path, trained: Trained) -> Callable[[Tensor], Tensor]:
    """What onnxruntime makes of the file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["features"], {"pixels": pixels.numpy()})[0])


def loading(trained: Trained) -> str:
    return (
        "import onnxruntime\n"
        'model = onnxruntime.InferenceSession("OUT/model.onnx")\n'
        'features = model.run(["features"], {"pixels": pixels})[0]'
        f"  # pixels, float32: a numpy array; [tiles, {trained.feature_dim}]\n"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own making."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
