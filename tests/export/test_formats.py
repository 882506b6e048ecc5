"""Features of every export format equal the trainer's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from support.exported_runs import BANDS13, export_and_compare, trained_encoder
from torch import Tensor

from moco_accel.export.trained_encoder import random_pixels

EXACT = ("transformers", "torchvision", "timm", "torchgeo")
pytestmark = pytest.mark.usefixtures("few_blocks")


@pytest.fixture(autouse=True)
def _no_progress_bars() -> None:
    transformers.utils.logging.disable_progress_bar()


def features_by_card(out: Path, pixels: Tensor) -> Tensor:
    """Run the model card's snippet, with the name of the folder replaced."""
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    assert code is not None
    names = {"pixels": pixels}
    with torch.no_grad():
        exec(code[1].replace("OUT", str(out)), names)
    return torch.as_tensor(names["features"])


@pytest.mark.parametrize("bands", [3, 13])
@pytest.mark.parametrize("name", ["vit_tiny_patch8", "vit_small_patch16", "resnet10", "resnet18", "resnet50"])
def test_features_equal_the_trainers_in_every_library(name: str, bands: int, tmp_path: Path) -> None:
    trained = trained_encoder(tmp_path / "run", name, bands)
    pixels = random_pixels(trained, 5)
    with torch.no_grad():
        ours = trained.encoder(pixels)
    assert ours.std() > 0.2  # large enough to show a difference
    for format_name in EXACT:
        out = tmp_path / format_name
        assert export_and_compare(trained, out, format_name) <= 1e-5
        if format_name == "torchgeo":  # its snippet needs torchgeo: test_torchgeo.py
            continue
        theirs = features_by_card(out, pixels)
        # worst measured, of the largest feature: 5e-7 (torchvision's attention), 1e-6 (ResNets: another memory format)
        assert (theirs - ours).abs().max() <= 1e-5 * max(1, ours.abs().max())


@pytest.mark.parametrize("name", ["vit_tiny_patch8", "resnet10"])
def test_onnx_accepts_any_number_of_tiles_and_holds_the_preprocessing(name: str, tmp_path: Path) -> None:
    import onnx

    trained = trained_encoder(tmp_path / "run", name, 13)
    assert export_and_compare(trained, tmp_path / "out", "onnx") <= 1e-4
    for count in (1, 7):
        pixels = random_pixels(trained, count)
        with torch.no_grad():
            theirs, ours = features_by_card(tmp_path / "out", pixels.numpy()), trained.encoder(pixels)
        assert (theirs - ours).abs().max() <= 1e-4  # worst measured: 3e-6
    model = onnx.load(tmp_path / "out/model.onnx")
    stored = json.loads({entry.key: entry.value for entry in model.metadata_props}["preprocessing"])
    assert stored == json.loads((tmp_path / "out/preprocessing.json").read_text())
    assert model.opset_import[0].version >= 18
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["pixels", "features"]


def test_timm_export_loads_in_transformers_and_holds_only_the_encoder(tmp_path: Path) -> None:
    trained = trained_encoder(tmp_path / "run", "vit_tiny_patch8", 13)
    export_and_compare(trained, tmp_path / "out", "timm")
    pixels = random_pixels(trained)
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()(pixels).pooler_output
        assert (theirs - trained.encoder(pixels)).abs().max() <= 1e-5  # measured: 0
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as file:
        names = list(file.keys())
        assert file.metadata() == {"format": "pt"}
    assert "patch_embed.proj.weight" in names
    assert not [name for name in names if re.search("project(or)|predictor|momentum|head", name)]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["pretrained_cfg"]["first_conv"] is None
    assert "num_classes" not in config["model_args"]


def test_image_processor_makes_the_trainers_pixels_of_an_rgb_tile(tmp_path: Path) -> None:
    trained = trained_encoder(tmp_path / "run", "vit_tiny_patch8")
    export_and_compare(trained, tmp_path / "out", "transformers")
    tile = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    theirs = processor(Image.fromarray(tile), return_tensors="pt").pixel_values[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in trained.recipe.normalisation)
    ours = (torch.from_numpy(tile).permute(2, 0, 1) / 255 - mean) / std
    assert (theirs - ours).abs().max() <= 1e-5  # worst measured: 5e-7


def test_preprocessing_and_card_describe_13_bands(tmp_path: Path) -> None:
    trained = trained_encoder(tmp_path / "run", "resnet10", 13)
    export_and_compare(trained, tmp_path / "out", "transformers")
    assert not (tmp_path / "out/preprocessor_config.json").exists()
    stored = json.loads((tmp_path / "out/preprocessing.json").read_text())
    assert (stored["bands"], stored["low"], stored["high"]) == (BANDS13, [0.0] * 13, [10_000.0] * 13)
    assert (stored["nodata"], stored["nodata_in"], stored["image_size"]) == (0.0, "any band", 32)
    assert stored["mean"] == trained.recipe.data.mean
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlicense: unknown\nlibrary_name: transformers\n")
    assert "| B8A | 0 | 10000 | 0.18 | 0.13 |" in card
    assert "Not measured." in card
    assert "`batch.global_batch_size` is 8; the paper uses 4096" in card
