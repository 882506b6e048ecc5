"""moco-export: features in the other library are the trainer's; nothing half written, nothing overwritten unasked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from support.exported_runs import BANDS13, saved_run, trained_encoder
from torch import Tensor
from typer.testing import CliRunner

from moco_accel.common.errors import UserError
from moco_accel.export import exporting
from moco_accel.export.cli import app
from moco_accel.export.trained import Trained, find_trained, random_pixels

EXACT = ("transformers", "torchvision", "timm", "torchgeo")
pytestmark = pytest.mark.usefixtures("few_blocks")


@pytest.fixture(autouse=True)
def _no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.utils.logging.disable_progress_bar()


def exported(trained: Trained, out: Path, format_name: str) -> float:
    worst = exporting.export(trained, out, exporting.format_named(format_name))
    assert worst is not None
    return worst


def card_code(out: Path, pixels: Tensor) -> Tensor:
    """What the three lines of the card compute, run as they stand but for the folder's name."""
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    assert code is not None
    names = {"pixels": pixels}
    with torch.no_grad():
        exec(code[1].replace("OUT", str(out)), names)
    return torch.as_tensor(names["features"])


@pytest.mark.parametrize("bands", [3, 13])
@pytest.mark.parametrize("name", ["vit_tiny_patch8", "vit_small_patch16", "resnet10", "resnet18", "resnet50"])
def test_features_are_the_trainers_in_every_library(name: str, bands: int, tmp_path: Path) -> None:
    trained = trained_encoder(tmp_path / "run", name, bands)
    pixels = random_pixels(trained, 5)
    with torch.no_grad():
        ours = trained.encoder(pixels)
    assert ours.std() > 0.2  # so that a difference can be seen
    for format_name in EXACT:
        out = tmp_path / format_name
        assert exported(trained, out, format_name) <= 1e-5
        if format_name == "torchgeo":  # its lines want torchgeo: test_export_torchgeo.py
            continue
        theirs = card_code(out, pixels)
        # worst measured, of the largest feature: 5e-7 (torchvision's attention), 1e-6 (ResNets: another memory format)
        assert (theirs - ours).abs().max() <= 1e-5 * max(1, ours.abs().max())


@pytest.mark.parametrize("name", ["vit_tiny_patch8", "resnet10"])
def test_onnx_takes_any_number_of_tiles_and_says_what_pixels_are(name: str, tmp_path: Path) -> None:
    import onnx

    trained = trained_encoder(tmp_path / "run", name, 13)
    assert exported(trained, tmp_path / "out", "onnx") <= 1e-4
    for count in (1, 7):
        pixels = random_pixels(trained, count)
        with torch.no_grad():
            theirs, ours = card_code(tmp_path / "out", pixels.numpy()), trained.encoder(pixels)
        assert (theirs - ours).abs().max() <= 1e-4  # worst measured: 3e-6
    model = onnx.load(tmp_path / "out/model.onnx")
    said = json.loads({entry.key: entry.value for entry in model.metadata_props}["preprocessing"])
    assert said == json.loads((tmp_path / "out/preprocessing.json").read_text())
    assert model.opset_import[0].version >= 18
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["pixels", "features"]


def test_timm_folder_loads_in_transformers_too_and_holds_the_encoder_alone(tmp_path: Path) -> None:
    trained = trained_encoder(tmp_path / "run", "vit_tiny_patch8", 13)
    exported(trained, tmp_path / "out", "timm")
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
    exported(trained, tmp_path / "out", "transformers")
    tile = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    theirs = processor(Image.fromarray(tile), return_tensors="pt").pixel_values[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in trained.recipe.normalisation)
    ours = (torch.from_numpy(tile).permute(2, 0, 1) / 255 - mean) / std
    assert (theirs - ours).abs().max() <= 1e-5  # worst measured: 5e-7


def test_other_bands_are_told_in_preprocessing_and_card(tmp_path: Path) -> None:
    trained = trained_encoder(tmp_path / "run", "resnet10", 13)
    exported(trained, tmp_path / "out", "transformers")
    assert not (tmp_path / "out/preprocessor_config.json").exists()
    said = json.loads((tmp_path / "out/preprocessing.json").read_text())
    assert (said["bands"], said["low"], said["high"]) == (BANDS13, [0.0] * 13, [10_000.0] * 13)
    assert (said["nodata"], said["nodata_in"], said["image_size"]) == (0.0, "any band", 32)
    assert said["mean"] == trained.recipe.data.mean
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlicense: unknown\nlibrary_name: transformers\n")
    assert "| B8A | 0 | 10000 | 0.18 | 0.13 |" in card
    assert "Nothing was measured" in card
    assert "`batch.global_batch_size` is 8, the paper's 4096" in card


def test_card_has_the_measured_figures_beside_their_baselines(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", "resnet10")
    figures = {"knn_top1": 0.8125, "knn_top1_random_init": 0.5, "knn_top1_mean_colour": 0.6}
    (run / "summary.json").write_text(json.dumps(figures))
    exported(find_trained(run, "latest"), tmp_path / "out", "torchvision")
    card = (tmp_path / "out/README.md").read_text()
    assert "| this encoder | 81.2% |" in card
    assert "| the same encoder before training | 50.0% |" in card
    assert "| mean colour of a tile | 60.0% |" in card
    assert "Nothing was measured" not in card
    assert "which may be of another of its checkpoints" in card
    own = {"step": find_trained(run, "latest").step, **figures, "knn_top1": 0.75}
    rows = [own | {"step": own["step"] + 1, "knn_top1": 0.9}, own]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exported(find_trained(run, "latest"), tmp_path / "again", "torchvision")
    card = (tmp_path / "again/README.md").read_text()
    assert "| this encoder | 75.0% |" in card
    assert "of these weights, after " in card


def test_a_wrong_export_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    trained, chosen = trained_encoder(tmp_path / "run", "resnet10"), exporting.format_named("timm")

    def write_wrong(trained: Trained, folder: Path) -> None:
        before = trained.encoder.conv1.weight.clone()
        trained.encoder.conv1.weight.mul_(1.001)
        chosen.write(trained, folder)
        trained.encoder.conv1.weight.copy_(before)

    wrong = exporting.Format("timm", write_wrong, chosen.features, chosen.loading, (), "timm")
    with pytest.raises(UserError, match=r"--format=timm: features read back differ by .*e-0[2-4], more than 1e-05"):
        exporting.export(trained, tmp_path / "out", wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_taken_folders_are_refused_and_only_exports_replaced(tmp_path: Path) -> None:
    run, out = saved_run(tmp_path / "run", "resnet10"), tmp_path / "out"

    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(run), str(out), *arguments])
        return result.exit_code, " ".join(result.stderr.split())

    out.mkdir()
    assert call("--format", "torchvision")[0] == 0  # an empty folder is as good as none
    code, said = call("--format", "timm")
    assert code == 2
    assert said == f"error: OUT={out} is not empty; --overwrite replaces an export, or name a new folder"
    assert call("--format", "timm", "--overwrite")[0] == 0
    assert (out / "config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    (out / "preprocessing.json").unlink()
    code, said = call("--format", "timm", "--overwrite")
    assert code == 2
    assert "which --overwrite never removes" in said
    assert (out / "config.json").exists()


def test_command_line_of_best_and_of_a_checkpoint(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", "resnet10")

    def call(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, result.stdout, " ".join(result.stderr.split())

    code, _, said = call(str(run), str(tmp_path / "a"), "--format", "torchvision", "--which", "best")
    assert code == 2
    assert said.endswith(f"--which=best: {run}/best names no checkpoint; --which latest works")
    (run / "best").write_text("step_00000001 0.5\n")
    code, printed, _ = call(str(run), str(tmp_path / "a"), "--format", "torchvision", "--which", "best", "--json")
    assert (code, json.loads(printed)["step"]) == (0, 1)
    code, printed, _ = call(
        str(run / "checkpoints/step_00000001"), str(tmp_path / "b"), "--format", "torchvision", "--json"
    )
    assert (code, json.loads(printed)["worst_difference"] <= 1e-5) == (0, True)
    code, _, said = call(str(tmp_path / "none"), str(tmp_path / "c"), "--format", "timm")
    assert (code, said) == (
        2,
        f"error: {tmp_path}/none holds no checkpoint; train one with --output-dir {tmp_path}/none",
    )


def test_help_loads_no_torch() -> None:
    code = (
        "import sys, moco_accel.export.cli; print([m for m in ('torch', 'transformers', 'timm') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
