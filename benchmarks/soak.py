"""Train for hours on two processes that are killed every few minutes, beside an undisturbed run.

Prints one row per life of the killed run and per tenth of the other (resident memory of the ranks, CPU time per tile,
tiles per second), and a summary: how these changed over the run, and whether both runs ended with equal weights.
Memory of the killed run is compared at the same age of each life, just before the kill.

    python benchmarks/soak.py --minutes 120 --kill-every 5 >> benchmarks/results/soak.jsonl
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import datasets
import numpy as np
import psutil
import typer
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.recipes import small_recipe
from support.trainer_processes import Trainer

from moco_accel.checkpoints.checkpoint import MODEL, OPTIMIZER
from moco_accel.checkpoints.run_log import read_rows
from moco_accel.recipe.load import save_recipe

TILES, BATCH, LOG_EVERY, PROCESSES = 3200, 32, 5, 2
STEPS_AN_EPOCH = TILES // BATCH
SAMPLE_SECONDS = 1.0
LATE_SHARE = 0.2  # of a life, when caches are full


def write_tiles(folder: Path) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(TILES)]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(folder / "tiles.parquet")


def write_recipe(folder: Path, epochs: int, save_every: float) -> Path:
    recipe = small_recipe(
        encoder={"name": "vit_tiny_patch8", "image_size": 32},
        moco={"queue_size": 64},
        batch={"global_batch_size": BATCH, "micro_batch_size": BATCH // 2, "accumulation_steps": 1},
        hardware={"num_devices": PROCESSES},
        schedule={"epochs": epochs},
        data={"source": str(folder / "tiles"), "num_workers": 1},
        run={"log_every_steps": LOG_EVERY, "checkpoint_every_steps": 100_000, "checkpoint_every_minutes": save_every},
    )
    save_recipe(recipe, folder / f"{epochs}.yaml")
    return folder / f"{epochs}.yaml"


class Sample(NamedTuple):
    """Sum over the ranks. Resident memory includes pages shared with loader workers; rows are rows of metrics.jsonl."""

    resident_mib: float
    processor_seconds: float
    rows: int


def sample(trainer: Trainer) -> Sample | None:
    try:
        found = [psutil.Process(pid) for pid in trainer.ranks()]
        resident = sum(process.memory_info().rss for process in found) / 2**20
        seconds = sum(sum(process.cpu_times()[:2]) for process in found)
    except psutil.NoSuchProcess:
        return None
    return Sample(resident, seconds, trainer.rows()) if len(found) == PROCESSES else None


def train_until_kill(run: Path, recipe: Path, seconds: float, resume: bool) -> tuple[list[Sample], bool]:
    """Train to the end, or kill after `seconds` of steps; return one sample per second, and True at the end."""
    trainer, samples, started = Trainer("torchrun", run, recipe, *["--resume"][: int(resume)]), [], float("inf")
    before = trainer.rows()
    try:
        while trainer.process.poll() is None and time.monotonic() < started + seconds:
            time.sleep(SAMPLE_SECONDS)
            if started == float("inf") and trainer.rows() not in (0, before):
                started = time.monotonic()
            if started < float("inf") and (found := sample(trainer)):
                samples.append(found)
        done = trainer.process.poll() == 0
        assert done or trainer.process.poll() is None, trainer.output()[-3000:]
    finally:
        trainer.kill()
    return samples, done


def figures(samples: list[Sample], logged: list[dict[str, Any]]) -> dict[str, float | None]:
    """Summarize samples and logged rows. CPU time per tile depends less on other load than tiles per second."""
    tiles = (samples[-1].rows - samples[0].rows) * LOG_EVERY * BATCH if samples else 0
    spent = samples[-1].processor_seconds - samples[0].processor_seconds if samples else 0.0
    speeds = [row["tiles_per_second"] for row in logged]
    return {
        "resident_mib": round(statistics.mean(each.resident_mib for each in samples), 1) if len(samples) > 4 else None,
        "processor_ms_per_tile": round(1000 * spent / tiles, 3) if tiles > 0 else None,
        "tiles_per_second": round(statistics.median(speeds), 1) if len(speeds) > 2 else None,
    }


def measure_rate(folder: Path) -> float:
    """Return optimizer steps per second, measured over half a minute."""
    run = folder / "rate"
    train_until_kill(run, write_recipe(folder, 1000, 60.0), 30, resume=False)
    return statistics.median(row["tiles_per_second"] for row in read_rows(run / "metrics.jsonl")[1:]) / BATCH


def train_undisturbed(folder: Path, recipe: Path, parts: int = 10) -> list[dict[str, Any]]:
    samples, done = train_until_kill(folder / "peace", recipe, float("inf"), resume=False)
    assert done
    found = read_rows(folder / "peace" / "metrics.jsonl")[1:-1]
    split = [
        [some[len(some) * part // parts : len(some) * (part + 1) // parts] for some in (samples, found)]
        for part in range(parts)
    ]
    return [print_row({"kind": "in peace", "part": part} | figures(*some)) for part, some in enumerate(split)]


def train_killed(folder: Path, recipe: Path, seconds: float) -> list[dict[str, Any]]:
    done, lives = False, []
    while not done:
        before = read_rows(folder / "killed" / "metrics.jsonl")
        samples, done = train_until_kill(folder / "killed", recipe, seconds, resume=bool(lives))
        found = read_rows(folder / "killed" / "metrics.jsonl")
        late = samples[int(len(samples) * (1 - LATE_SHARE)) :]
        row = {"kind": "killed", "life": len(lives), "ended_by_kill": not done, "last_step": found[-1]["step"]}
        lives.append(print_row(row | figures(late, [row for row in found if row not in before][1:])))
    return lives


def digest(run: Path, steps: int) -> str:
    last = run / "checkpoints" / f"step_{steps:08d}"
    return hashlib.sha256((last / MODEL).read_bytes() + (last / OPTIMIZER).read_bytes()).hexdigest()


def print_row(row: dict[str, Any]) -> dict[str, Any]:
    sys.stdout.write(json.dumps(row | {"load": round(os.getloadavg()[0], 1)}) + "\n")
    sys.stdout.flush()
    return row


def change(some: list[dict[str, Any]], name: str) -> float | None:
    """Return the change from the first to the last figure in per cent; None for fewer than two figures."""
    figures = [row[name] for row in some if row[name] is not None]
    return round(100 * (figures[-1] / figures[0] - 1), 2) if len(figures) > 1 else None


def main(
    minutes: Annotated[float, typer.Option(help="Minutes of steps in each of the two runs.")] = 120,
    kill_every: Annotated[float, typer.Option(help="Minutes of steps between kills.")] = 5,
) -> None:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiles(folder / "tiles")
        # both train at once, each at half the speed
        epochs = max(2, round(measure_rate(folder) / 2 * minutes * 60 / STEPS_AN_EPOCH))
        recipe, steps = write_recipe(folder, epochs, kill_every / 4), epochs * STEPS_AN_EPOCH
        with ThreadPoolExecutor() as pool:
            undisturbed = pool.submit(train_undisturbed, folder, recipe)
            lives, parts = train_killed(folder, recipe, kill_every * 60), undisturbed.result()
        killed = [row for row in lives if row["ended_by_kill"]]
        names = ("resident_mib", "processor_ms_per_tile", "tiles_per_second")
        print_row(
            {
                "kind": "summary",
                "minutes": minutes,
                "kill_every_minutes": kill_every,
                "steps": steps,
                "kills": len(killed),
                "equal": digest(folder / "killed", steps) == digest(folder / "peace", steps),
                "change_percent": {name: change(parts[1:], name) for name in names},
                "change_percent_between_lives": {name: change(killed, name) for name in names},
                "seconds": round(time.monotonic() - start),
                "versions": {name: version(name) for name in ("torch", "accelerate")},
                "python": platform.python_version(),
            }
        )


if __name__ == "__main__":
    typer.run(main)
