"""The entry point for real: launched, on two processes, killed and resumed, and given what it must refuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import small_recipe
from safetensors.torch import load_file
from typer.testing import CliRunner

from moco_accel.checkpoint import load_encoder
from moco_accel.recipe import save_recipe
from moco_accel.train import app

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "moco_accel" / "train.py")
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


@pytest.fixture
def recipe_file(tmp_path: Path, tiles_folder: Path) -> Path:
    recipe = small_recipe(
        data={"source": str(tiles_folder), "num_workers": 1},
        batch={"micro_batch_size": 8, "accumulation_steps": 1},
        run={"log_every_steps": 1, "checkpoint_every_steps": 3},
    )
    save_recipe(recipe, tmp_path / "small.yaml")
    return tmp_path / "small.yaml"


def launch(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=280, cwd=ROOT
    )


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]


def test_accelerate_launch_leaves_a_whole_run(recipe_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    accelerate = [str(Path(sys.executable).with_name("accelerate")), "launch"]
    config = ["--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml")]
    done = launch([*accelerate, *config], TRAIN, "--recipe", str(recipe_file), "--output-dir", str(run))
    assert done.returncode == 0, done.stderr[-3000:]
    logged = rows(run)
    assert [row["step"] for row in logged] == list(range(10))
    assert logged[0]["lr"] == 0.0
    assert {"loss", "lr", "momentum_coefficient", "tiles_per_second", "feature_std", "peak_memory_mib"} <= set(
        logged[0]
    )
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 10
    assert summary["final_loss"] == logged[-1]["loss"]
    assert summary["chance_loss"] == pytest.approx(4 * 0.2 * 2.0794415)
    assert (run / "latest").read_text() == "step_00000010\n"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000009", "step_00000010"]
    recipe, encoder, folder = load_encoder(run)
    saved = load_file(run / "checkpoints" / "step_00000010" / "model.safetensors")
    assert folder == run
    assert recipe.encoder.name == "vit_tiny_patch8"
    assert all((saved[f"encoder.{name}"] == value).all() for name, value in encoder.state_dict().items())


def test_two_processes_log_the_losses_of_one(recipe_file: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    halves = [
        "--set",
        "hardware.num_devices=2",
        "--set",
        "batch.micro_batch_size=2",
        "--set",
        "batch.accumulation_steps=2",
    ]
    for run, count, overrides in ((one, 1, []), (two, 2, halves)):
        command = [*TORCHRUN, f"--nproc_per_node={count}", TRAIN, "--recipe", str(recipe_file)]
        done = launch(command, "--output-dir", str(run), *overrides)
        assert done.returncode == 0, done.stderr[-3000:]
    losses = [[row["loss"] for row in rows(run)] for run in (one, two)]
    assert len(losses[0]) == 10
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)  # worst measured: 3e-7


@pytest.mark.parametrize(
    ("encoder", "optimizer"),
    # a ResNet's weights, and so its optimizer's state, lie channels_last
    [("vit_tiny_patch8", "adamw"), ("vit_tiny_patch8", "adamw_8bit"), ("resnet10", "adamw")],
)
def test_a_killed_run_resumes_to_the_same_end(recipe_file: Path, tmp_path: Path, encoder: str, optimizer: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = ["--recipe", str(recipe_file), "--set", "schedule.epochs=12"]
    arguments += ["--set", f"encoder.name={encoder}", "--set", f"optimizer.name={optimizer}"]
    if encoder == "resnet10":
        arguments += ["--set", "encoder.freeze_patch_projection=false"]
    assert launch([sys.executable, TRAIN], *arguments, "--output-dir", str(whole)).returncode == 0
    process = subprocess.Popen(
        [sys.executable, TRAIN, *arguments, "--output-dir", str(killed)], env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (killed / "latest").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (killed / "latest").read_text() < "step_00000060", "the run ended before it could be killed"
    done = launch([sys.executable, TRAIN], *arguments, "--output-dir", str(killed), "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["step"] for row in rows(killed)] == list(range(60))
    assert [row["loss"] for row in rows(killed)] == [row["loss"] for row in rows(whole)]
    for file in ("model.safetensors", "optimizer.safetensors"):
        ends = [(run / "checkpoints" / "step_00000060" / file).read_bytes() for run in (whole, killed)]
        assert ends[0] == ends[1], file


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder.nam=x"], "encoder.nam='x' is not a field of a recipe; did you mean name?"),
        (["batch.global_batch_size=-1"], "greater than or equal to 2; 4096 works"),
        (["encoder.image_size=big"], "input should be a valid integer; 224 works"),
        (["encoder.name=vit_huge"], "encoder.name='vit_huge' is not known"),
        (["batch.global_batch_size=9"], "nearest global batches for this micro-batch: 8, 16"),
        (["data.source=nowhere"], "data.source='nowhere'"),
        (["encoder.bands=4", "data.mean=[0,0,0,0]", "data.std=[1,1,1,1]"], "encoder.bands=3 works"),
        (["data.image_column=picture"], "data.image_column='picture'"),
        (
            ["hardware.vram_gib=8"],
            "hardware.vram_gib=8 wants a GPU and torch sees none here; --recipe recipes/cpu_demo.yaml",
        ),
        (["memory.mixed_precision=fp16"], "memory.mixed_precision=bf16 works on a CPU"),
        (
            ["hardware.num_devices=2", "batch.micro_batch_size=4"],
            "but 1 processes were launched; launch with --num_processes 2",
        ),
    ],
)
@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="messages of a machine without a GPU")
def test_mistakes_end_in_one_line_and_exit_code_2(
    recipe_file: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    arguments = ["--recipe", str(recipe_file), "--output-dir", str(tmp_path / "run")]
    for override in overrides:
        arguments += ["--set", override]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_finished_folder_is_not_overwritten_and_science_does_not_change_on_resume(
    recipe_file: Path, tmp_path: Path
) -> None:
    arguments = ["--recipe", str(recipe_file), "--output-dir", str(tmp_path / "run"), "--set", "schedule.epochs=1"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "already holds a run; --resume goes on with it" in again.stderr
    changed = CliRunner().invoke(app, [*arguments, "--resume", "--set", "moco.temperature=0.5"])
    assert changed.exit_code == 2
    assert "moco.temperature=0.5 differs from the run's 0.2" in changed.stderr
    fresh = CliRunner().invoke(app, ["--recipe", str(recipe_file), "--output-dir", str(tmp_path / "new"), "--resume"])
    assert fresh.exit_code == 2
    assert "holds no checkpoint" in fresh.stderr


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "accelerate launch" in result.stdout
