"""The Slurm job: parsed by bash and by Slurm, and run unchanged with stand-ins for Slurm's programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.plans import SMALL, assert_refused, moco_plan, plan_as_json
from support.recipes import small_recipe

from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.recipe.schema import Recipe
from planner.answer.launch import slurm_job

ROOT = Path(__file__).parents[2]
STEPS = 20


def cpu_recipe(tiles_folder: Path) -> Recipe:
    batch = {"global_batch_size": 8, "micro_batch_size": 4, "accumulation_steps": 1}
    return small_recipe(
        batch=batch,
        hardware={"num_devices": 2},
        schedule={"epochs": STEPS // 5},
        data={"source": str(tiles_folder)},
        run={"log_every_steps": 1},
    )


def job_folder(tmp_path: Path, recipe: Recipe) -> Path:
    """A folder with the package, a recipe, the job, and stand-ins for Slurm's programs."""
    save_recipe(recipe, tmp_path / "small.yaml")
    (tmp_path / "job.sbatch").write_text(slurm_job(recipe, "small.yaml", Path("job.sbatch")))
    (tmp_path / "moco_accel").symlink_to(ROOT / "moco_accel")
    (tmp_path / "bin").mkdir()
    for name in ("srun", "scontrol"):
        program = tmp_path / "bin" / name
        program.write_text(f"#!{sys.executable}\n" + (ROOT / "tests" / "support" / "fake_slurm.py").read_text())
        program.chmod(0o755)
    return tmp_path


def run_job(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the job with the variables that Slurm sets, and the interpreter of the tests as `python`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = folder / "job.sbatch"
    text, found = re.subn(r"MASTER_PORT=\$.*", f"MASTER_PORT={port}", job.read_text())  # tests run in parallel
    assert found == 1
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    by_slurm = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "node[0-1]"}
    return subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env=os.environ | {"PATH": path, "REQUEUED": str(folder / "requeued")} | by_slurm | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def steps_logged(folder: Path) -> list[int]:
    return [json.loads(row)["step"] for row in (folder / "runs/small/metrics.jsonl").read_text().splitlines()]


def test_job_is_written_and_parsed_by_bash(tmp_path: Path) -> None:
    job, recipe = tmp_path / "my job.sbatch", tmp_path / "4 nodes.yaml"
    hardware = ["--nodes", "4", "--gpus", "8", "--vram", "24"]
    answer, stderr = plan_as_json(*hardware, *SMALL, "--output", str(recipe), "--slurm", str(job))
    assert f"sbatch '{job}'" in stderr
    assert answer["slurm_job"] == str(job)
    assert subprocess.run(["bash", "-n", job], capture_output=True, text=True).stderr == ""
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", job.read_text(), re.M))
    assert directives["nodes"] == "4"
    assert directives["ntasks-per-node"] == directives["gpus-per-node"] == "8"
    assert directives["cpus-per-task"] == str(load_recipe(recipe).data.num_workers + 1)
    assert f"srun --cpus-per-task={directives['cpus-per-task']} " in job.read_text()  # srun does not inherit it
    assert directives["job-name"] == "4_nodes"
    assert directives["signal"] == "TERM@300"
    assert "WORLD_SIZE=32 LOCAL_WORLD_SIZE=8" in job.read_text()
    assert f"--recipe '{recipe}' --output-dir \"$run\" --resume" in job.read_text()


def test_job_for_an_existing_recipe(tmp_path: Path) -> None:
    job = tmp_path / "new" / "job.sbatch"
    result = moco_plan("--recipe", str(ROOT / "recipes/cpu_demo.yaml"), "--slurm", str(job))
    assert result.exit_code == 0, result.stderr
    assert "gpus-per-node" not in job.read_text()
    assert "ACCELERATE_USE_CPU=true" in job.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vram", "8", "--slurm", "/proc/nowhere/job.sbatch"], "--slurm=/proc/nowhere/job.sbatch cannot be written"),
        (["--vram", "8", "--slurm", "."], "--slurm=. cannot be written; --slurm job.sbatch works"),
        (["--slurm", "job.sbatch"], "--slurm=job.sbatch needs named GPUs or a recipe; --vram 8 works"),
    ],
)
def test_wrong_options_exit_with_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(arguments, f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_slurm_accepts_the_job(tmp_path: Path, tiles_folder: Path) -> None:
    """Where Slurm is installed; an unknown directive would be refused."""
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("Slurm is not installed")
    folder = job_folder(tmp_path, cpu_recipe(tiles_folder))
    job = folder / "job.sbatch"
    taken = subprocess.run(["sbatch", "--test-only", job], capture_output=True, text=True)
    assert taken.returncode == 0, taken.stderr
    assert re.search(r"to start at .* using 2 processors", taken.stderr), taken.stderr
    job.write_text(job.read_text().replace("--requeue", "--requeues"))
    assert subprocess.run(["sbatch", "--test-only", job], capture_output=True).returncode != 0


@pytest.mark.slow
def test_stopped_job_is_saved_requeued_and_resumed_to_the_end(tmp_path: Path, tiles_folder: Path) -> None:
    folder = job_folder(tmp_path, cpu_recipe(tiles_folder))
    metrics = str(folder / "runs/small/metrics.jsonl")
    stopped = run_job(folder, STOP_WHEN=metrics)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped by SIGTERM" in stopped.stderr
    assert (folder / "requeued").read_text() == "77\n"
    logged = steps_logged(folder)
    assert logged == list(range(len(logged)))
    assert len(logged) < STEPS
    resumed = run_job(folder, STOP_WHEN=metrics)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed after step {len(logged)}" in resumed.stderr
    assert steps_logged(folder) == list(range(STEPS))
    assert json.loads((folder / "runs/small/summary.json").read_text())["steps"] == STEPS
    again = run_job(folder)
    assert again.returncode == 0
    assert "nothing is left to resume" in again.stderr
    assert (folder / "requeued").read_text() == "77\n"


def test_job_with_a_wrong_recipe_fails_and_is_not_requeued(tmp_path: Path, tiles_folder: Path) -> None:
    folder = job_folder(tmp_path, cpu_recipe(tiles_folder))
    recipe = folder / "small.yaml"
    recipe.write_text(recipe.read_text().replace("source: ", "sauce: "))
    done = run_job(folder)
    assert done.returncode == 2
    assert "data.sauce" in done.stderr
    assert not (folder / "requeued").exists()
