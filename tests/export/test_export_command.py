"""moco-export: the model card's metrics, folders it refuses, verification before OUT appears, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.exported_runs import export_and_compare, saved_run, trained_encoder
from typer.testing import CliRunner

from moco_accel.common.errors import UserError
from moco_accel.export.cli import app
from moco_accel.export.export import export_encoder, get_format
from moco_accel.export.trained_encoder import TrainedEncoder, find_trained_encoder

pytestmark = pytest.mark.usefixtures("few_blocks")


def call(*arguments: Path | str) -> tuple[int, str, str]:
    """Run moco-export; return exit code, stdout, and stderr on one line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_card_has_the_measured_accuracy_beside_its_baselines(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", "resnet10")
    metrics = {"knn_top1": 0.8125, "knn_top1_random_init": 0.5, "knn_top1_mean_colour": 0.6}
    (run / "summary.json").write_text(json.dumps(metrics))
    export_and_compare(find_trained_encoder(run, "latest"), tmp_path / "out", "torchvision")
    card = (tmp_path / "out/README.md").read_text()
    assert "| this encoder | 81.2% |" in card
    assert "| the same encoder before training | 50.0% |" in card
    assert "| mean colour of a tile | 60.0% |" in card
    assert "Not measured" not in card
    assert "which may be of another checkpoint of the run" in card
    own = {"step": find_trained_encoder(run, "latest").step, **metrics, "knn_top1": 0.75}
    rows = [own | {"step": own["step"] + 1, "knn_top1": 0.9}, own]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    export_and_compare(find_trained_encoder(run, "latest"), tmp_path / "again", "torchvision")
    card = (tmp_path / "again/README.md").read_text()
    assert "| this encoder | 75.0% |" in card
    assert "measured on these weights, after " in card


def test_a_wrong_export_is_an_error_and_leaves_no_files(tmp_path: Path) -> None:
    trained, timm = trained_encoder(tmp_path / "run", "resnet10"), get_format("timm")

    def write_wrong(trained: TrainedEncoder, folder: Path) -> None:
        before = trained.encoder.conv1.weight.clone()
        trained.encoder.conv1.weight.mul_(1.001)
        timm.write_export(trained, folder)
        trained.encoder.conv1.weight.copy_(before)

    with pytest.raises(UserError, match=r"--format=timm: features read back differ by .*e-0[2-4], more than 1e-05"):
        export_encoder(trained, tmp_path / "out", replace(timm, write_export=write_wrong))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_only_empty_folders_and_exports_are_replaced(tmp_path: Path) -> None:
    run, out = saved_run(tmp_path / "run", "resnet10"), tmp_path / "out"
    out.mkdir()
    assert call(run, out, "--format", "torchvision")[0] == 0
    code, _, error = call(run, out, "--format", "timm")
    assert code == 2
    assert error == f"error: OUT={out} is not empty; --overwrite replaces an export, or name a new folder"
    assert call(run, out, "--format", "timm", "--overwrite")[0] == 0
    assert (out / "config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    (out / "preprocessing.json").unlink()
    code, _, error = call(run, out, "--format", "timm", "--overwrite")
    assert code == 2
    assert "that --overwrite never removes" in error
    assert (out / "config.json").exists()


def test_export_of_the_best_and_of_a_named_checkpoint(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", "resnet10")
    code, _, error = call(run, tmp_path / "a", "--format", "torchvision", "--which", "best")
    assert code == 2
    assert error.endswith(
        f"--which=best: no evaluated checkpoint of {run} is whole; --which latest works, step_00000001"
    )
    (run / "best").write_text("step_00000001 0.5\n")
    code, printed, error = call(run, tmp_path / "a", "--format", "torchvision", "--which", "best", "--json")
    assert (code, json.loads(printed)["step"]) == (0, 1)
    assert error.startswith("--which best: step_00000001, kNN 50.0% wrote")
    code, printed, _ = call(run / "checkpoints/step_00000001", tmp_path / "b", "--format", "torchvision", "--json")
    assert (code, json.loads(printed)["worst_difference"] <= 1e-5) == (0, True)
    code, _, error = call(tmp_path / "none", tmp_path / "c", "--format", "timm")
    assert (code, error) == (
        2,
        f"error: {tmp_path}/none holds no checkpoint; train one with --output-dir {tmp_path}/none",
    )


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys, moco_accel.export.cli; print([m for m in ('torch', 'transformers', 'timm') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
