"""The command itself: launched, on two ranks, killed and resumed, and with mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
from PIL import Image
from safetensors.torch import load_file
from support.recipes import small_recipe
from support.trainer_processes import ENVIRONMENT, ROOT, TORCHRUN, TRAIN, command_line, launch, rows, train
from typer.testing import CliRunner

from moco_accel.checkpoints.run_folder import load_encoder
from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.train import app, set_allocator


@pytest.fixture
def recipe_file(tmp_path: Path, tiles_folder: Path) -> Path:
    recipe = small_recipe(
        data={"source": str(tiles_folder), "num_workers": 1},
        batch={"micro_batch_size": 8, "accumulation_steps": 1},
        run={"log_every_steps": 1, "checkpoint_every_steps": 3},
    )
    save_recipe(recipe, tmp_path / "small.yaml")
    return tmp_path / "small.yaml"


def test_accelerate_launch_writes_a_complete_run(recipe_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    accelerate = [str(Path(sys.executable).with_name("accelerate")), "launch"]
    config = ["--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml")]
    done = launch([*accelerate, *config], TRAIN, *command_line(recipe_file, run))
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


def test_result_depends_only_on_recipe_and_data(recipe_file: Path, tmp_path: Path) -> None:
    """40 tiles in batches of 12, 21 steps: on 1 and 2 ranks, with 0 and 3 loader workers, resumed and not."""

    def losses(name: str, processes: int, workers: int, resume: bool = False) -> list[float]:
        changes = ["schedule.epochs=7", "batch.global_batch_size=12", f"optimizer.lr={1.5e-4 * 12 / 256}"]
        changes += [f"batch.micro_batch_size={12 // processes**2}", f"batch.accumulation_steps={processes}"]
        changes += [f"hardware.num_devices={processes}", f"data.num_workers={workers}"]
        changes += ["run.checkpoint_every_steps=7", "run.keep_checkpoints=3"]
        train(recipe_file, tmp_path / name, *changes, resume=resume, processes=processes)
        return [row["loss"] for row in rows(tmp_path / name)]

    expected = losses("one", processes=1, workers=0)
    assert len(expected) == 21
    found = {"3 workers": losses("workers", processes=1, workers=3)}
    found["2 processes"] = losses("two", processes=2, workers=0)
    shutil.copytree(tmp_path / "one", tmp_path / "resumed")
    for newer in ("step_00000014", "step_00000021"):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / newer)
    found["1 process, resumed on 2 with 3 workers"] = losses("resumed", 2, 3, resume=True)
    for name, run in found.items():
        worst = max(abs(a / b - 1) for a, b in zip(run, expected, strict=True))
        print(f"{name}: {worst:.0e}")
        assert worst < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ["moco.queue_size=24"],
        ["optimizer.name=adamw_8bit"],
        # weights and optimizer state of a ResNet are channels_last
        ["encoder.name=resnet10", "encoder.freeze_patch_projection=false"],
    ],
    ids=["vit queue", "8-bit", "resnet"],
)
def test_killed_run_resumes_to_the_same_end(recipe_file: Path, tmp_path: Path, changes: list[str]) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    changes = ["schedule.epochs=12", *changes]
    train(recipe_file, undisturbed, *changes)
    arguments = [sys.executable, TRAIN, *command_line(recipe_file, killed, *changes)]
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed / "latest").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (killed / "latest").read_text() < "step_00000060", "the run ended before it could be killed"
    train(recipe_file, killed, *changes, resume=True)
    assert [row["step"] for row in rows(killed)] == list(range(60))
    assert [row["loss"] for row in rows(killed)] == [row["loss"] for row in rows(undisturbed)]
    for file in ("model.safetensors", "optimizer.safetensors"):
        contents = [(run / "checkpoints" / "step_00000060" / file).read_bytes() for run in (undisturbed, killed)]
        assert contents[0] == contents[1], file


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder.nam=x"], "encoder.nam='x' is not a field of a recipe; did you mean name?"),
        (["batch.global_batch_size=-1"], "greater than or equal to 2; 4096 works"),
        (["encoder.image_size=big"], "input should be a valid integer; 224 works"),
        (["encoder.name=vit_huge"], "encoder.name='vit_huge' is not known"),
        (["batch.global_batch_size=9"], "batch.micro_batch_size=3 batch.accumulation_steps=3 optimizer.lr="),
        (["data.source=nowhere"], "data.source='nowhere'"),
        (["encoder.bands=4", "data.mean=[0,0,0,0]", "data.std=[1,1,1,1]"], "encoder.bands=3 works"),
        (["data.image_column=picture"], "data.image_column='picture'"),
        (
            ["hardware.vram_gib=8"],
            "hardware.vram_gib=8 needs a GPU and torch finds none here; --recipe recipes/cpu_demo.yaml",
        ),
        (["memory.mixed_precision=fp16"], "memory.mixed_precision=bf16 works on a CPU"),
        (
            ["hardware.num_devices=2", "batch.micro_batch_size=4"],
            "num_devices=2 but 1 process was launched; launch with: ACCELERATE_USE_CPU=true torchrun --standalone",
        ),
    ],
)
@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="messages of a machine without a GPU")
def test_user_errors_are_one_line_with_exit_code_2(
    recipe_file: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    result = CliRunner().invoke(app, command_line(recipe_file, tmp_path / "run", *overrides))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_finished_run_is_not_overwritten_and_resume_refuses_other_results(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles, run = tmp_path / "tiles [" / "b] C: x", tmp_path / "r2 [" / "b]"  # rich could read [/b] as markup
    tiles.parent.mkdir()
    tiles.symlink_to(load_recipe(recipe_file).data.source)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    arguments = command_line(recipe_file, run, "schedule.epochs=1", f"data.source={tiles}")
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.stderr
    lines = first.stderr.splitlines()
    assert sum(line.endswith(f" · {run}") for line in lines) == 2  # at start and end
    assert any(f"tiles of {tiles} as an arrow cache" in line for line in lines)
    assert load_recipe(run / "recipe.yaml").data.source == str(tiles)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert f"--output-dir={run} already holds a run; --resume continues it" in again.stderr
    changed = CliRunner().invoke(app, [*arguments, "--resume", "--set", "moco.temperature=0.5"])
    assert changed.exit_code == 2
    assert "moco.temperature=0.5 differs from the run's 0.2" in changed.stderr
    named = CliRunner().invoke(app, [*arguments, "--resume", "--set", "data.stored_bands=[r, g, b]"])
    assert "; --set data.stored_bands=null continues the run" in named.stderr


def test_nan_loss_ends_the_run(recipe_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = ["run.checkpoint_every_steps=1", "schedule.warmup_epochs=0.2"]  # step 0 at lr 0
    changes += ["optimizer.base_lr=1e6", "optimizer.lr=31250", "optimizer.weight_decay=1e6"]
    result = CliRunner().invoke(app, command_line(recipe_file, run, *changes))
    assert result.exit_code == 2
    error = result.stderr.splitlines()[-1]
    assert re.search(r"error: the (loss|sum of all parameters) is (nan|inf|-inf) at step [1-4]; ", error)
    assert f"{run / 'checkpoints' / 'step_0000000'}" in error
    assert "is the last good checkpoint. Try: a lower optimizer.base_lr" in error
    saved = load_file(run / "checkpoints" / (run / "latest").read_text().strip() / "model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())


@pytest.mark.slow
def test_collapse_is_printed_once(recipe_file: Path, tmp_path: Path) -> None:
    black = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (20, 20))] * 40}, features=datasets.Features({"image": datasets.Image()})
    )
    (tmp_path / "black").mkdir()
    black.to_parquet(tmp_path / "black" / "tiles.parquet")
    changes = [f"data.source={tmp_path / 'black'}", "augment.noise_std=0", "schedule.epochs=22", "data.num_workers=0"]
    changes += ["run.log_every_steps=50", "run.checkpoint_every_steps=200"]
    result = CliRunner().invoke(app, command_line(recipe_file, tmp_path / "run", *changes))
    assert result.exit_code == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("COLLAPSED:")]
    assert len(lines) == 1
    assert "for 100 steps, to step 99" in lines[0]


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "accelerate launch" in result.stdout


@pytest.mark.parametrize(
    ("environment", "platform", "enabled", "expected", "message"),
    [
        ({}, "linux", True, "expandable_segments:True", ""),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "linux", True, None, "your environment sets backend:native"),
        ({}, "win32", True, None, "only Linux supports it"),
        ({}, "linux", False, None, ""),
    ],
    ids=["set", "the environment decides", "not on Linux", "disabled"],
)
def test_expandable_segments_are_set_or_reported(
    environment: dict[str, str],
    platform: str,
    enabled: bool,
    expected: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    set_allocator(enabled)
    assert os.environ.get("PYTORCH_ALLOC_CONF") == expected
    assert message in " ".join(capsys.readouterr().err.split())


def test_two_ranks_stop_together_if_one_reads_too_many_damaged_tiles(
    recipe_file: Path, tiles_folder: Path, tmp_path: Path
) -> None:
    """One of 40 tiles is damaged, so one rank reads it; the other would wait for its keys forever."""
    encoded = datasets.Image(decode=False)
    stored = datasets.Dataset.from_parquet(str(tiles_folder / "*.parquet")).cast_column("image", encoded)["image"]
    images = [{"bytes": b"" if index == 17 else tile["bytes"], "path": None} for index, tile in enumerate(stored)]
    (tmp_path / "damaged").mkdir()
    features = datasets.Features({"image": encoded})
    datasets.Dataset.from_dict({"image": images}, features).to_parquet(tmp_path / "damaged" / "tiles.parquet")
    changes = ["hardware.num_devices=2", "batch.micro_batch_size=4", f"data.source={tmp_path / 'damaged'}"]
    started = time.perf_counter()
    done = launch([*TORCHRUN, "--nproc_per_node=2", TRAIN], *command_line(recipe_file, tmp_path / "run", *changes))
    assert done.returncode != 0
    assert time.perf_counter() - started < 120
    assert done.stderr.count("error: data.max_damaged_share=0.01 allows 0 damaged tiles of 40") == 2  # from each rank
    assert "RuntimeError" not in done.stderr
    assert json.loads((tmp_path / "run" / "damaged_tiles.jsonl").read_text())["tile"] == 17


def test_resume_refuses_other_tiles(recipe_file: Path, tiles_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiles_folder, tmp_path / "tiles")
    arguments = command_line(recipe_file, tmp_path / "run", f"data.source={tmp_path / 'tiles'}")
    assert CliRunner().invoke(app, arguments).exit_code == 0
    shard = next((tmp_path / "tiles").glob("*.parquet"))
    fewer = datasets.Dataset.from_parquet(str(shard)).select(range(39))
    fewer.to_parquet(shard)
    result = CliRunner().invoke(app, [*arguments, "--resume"])
    assert result.exit_code == 2
    assert "data.source holds 39 tiles, and the run started with 40" in result.stderr
