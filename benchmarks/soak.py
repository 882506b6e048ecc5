"""Hours of steps of a small encoder on two processes, all killed every few minutes, beside a run left in peace.

Rows: one for each life of the killed run and each tenth of the other (resident memory of ranks and loader workers,
tiles per second), and a last one: growth of memory and change of speed over the run, and whether both ended alike.
Memory of the killed run is compared between lives at the same age: just before each kill.

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
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import datasets
import numpy as np
import typer
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from conftest import small_recipe
from trainer_processes import Trainer

from moco_accel.checkpoint import MODEL, OPTIMIZER
from moco_accel.recipe import save_recipe

TILES, BATCH, LOG_EVERY = 3200, 32, 5
STEPS_AN_EPOCH = TILES // BATCH
SAMPLE_SECONDS = 1.0
LATE_SHARE = 0.2  # of a life: what is left when caches have filled


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
        hardware={"num_devices": 2},
        schedule={"epochs": epochs},
        data={"source": str(folder / "tiles"), "num_workers": 1},
        run={"log_every_steps": LOG_EVERY, "checkpoint_every_steps": 100_000, "checkpoint_every_minutes": save_every},
    )
    save_recipe(recipe, folder / f"{epochs}.yaml")
    return folder / f"{epochs}.yaml"


def rows(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    return [json.loads(row) for row in file.read_text().splitlines() if row.endswith("}")] if file.is_file() else []


def resident_mib(trainer: Trainer) -> float:
    """Of the ranks: all pages that are theirs, those shared with loader workers too."""
    return sum(_resident(pid) for pid in trainer.ranks())


def _resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024
    except (OSError, StopIteration):
        return 0.0


def live(run: Path, recipe: Path, seconds: float, resume: bool) -> tuple[list[float], bool]:
    """Train until done, or kill all of it after so many `seconds` of steps; memory once a second, and whether done."""
    trainer, sizes, begun = Trainer("torchrun", run, recipe, *["--resume"][: int(resume)]), [], float("inf")
    before = len(rows(run))
    try:
        while trainer.process.poll() is None and time.monotonic() < begun + seconds:
            time.sleep(SAMPLE_SECONDS)
            if begun == float("inf") and len(rows(run)) != before and rows(run):
                begun = time.monotonic()
            if begun < float("inf") and (size := resident_mib(trainer)):
                sizes.append(size)
        done = trainer.process.poll() == 0
        assert done or trainer.process.poll() is None, trainer.said()[-3000:]
    finally:
        trainer.kill()
    return sizes, done


def measure_rate(folder: Path) -> float:
    """Steps per second, over half a minute."""
    run = folder / "rate"
    live(run, write_recipe(folder, 1000, 60.0), 30, resume=False)
    return statistics.median(row["tiles_per_second"] for row in rows(run)[1:]) / BATCH


def speed(found: list[dict[str, Any]]) -> float:
    return round(statistics.median(row["tiles_per_second"] for row in found), 1)


def in_peace(folder: Path, recipe: Path, parts: int = 10) -> Iterator[dict[str, Any]]:
    sizes, done = live(folder / "peace", recipe, float("inf"), resume=False)
    assert done
    found = rows(folder / "peace")[1:-1]
    for part in range(parts):
        memory, speeds = (
            [some[i] for i in range(len(some)) if i * parts // len(some) == part] for some in (sizes, found)
        )
        yield {
            "kind": "in peace",
            "part": part,
            "resident_mib": round(statistics.mean(memory), 1),
            "tiles_per_second": speed(speeds),
        }


def killed(folder: Path, recipe: Path, seconds: float) -> Iterator[dict[str, Any]]:
    done, life = False, 0
    while not done:
        before = rows(folder / "killed")
        sizes, done = live(folder / "killed", recipe, seconds, resume=life > 0)
        found = rows(folder / "killed")
        new = [row for row in found if row not in before][1:]
        late = sizes[int(len(sizes) * (1 - LATE_SHARE)) :]
        yield {
            "kind": "killed",
            "life": life,
            "ended_by_kill": not done,
            "last_step": found[-1]["step"] if found else None,
            "resident_mib": round(statistics.mean(late), 1) if len(sizes) >= 5 else None,
            "tiles_per_second": speed(new) if len(new) >= 3 else None,
        }
        life += 1


def digest(run: Path, steps: int) -> str:
    last = run / "checkpoints" / f"step_{steps:08d}"
    return hashlib.sha256((last / MODEL).read_bytes() + (last / OPTIMIZER).read_bytes()).hexdigest()


def say(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row | {"load": round(os.getloadavg()[0], 1)}), flush=True)
    return row


def change(some: list[dict[str, Any]], name: str) -> float | None:
    """From the first to the last that has a figure, in per cent; None of fewer than two."""
    figures = [row[name] for row in some if row[name] is not None]
    return round(100 * (figures[-1] / figures[0] - 1), 2) if len(figures) > 1 else None


def main(
    minutes: Annotated[float, typer.Option(help="of steps, in each of the two runs")] = 120,
    kill_every: Annotated[float, typer.Option(help="minutes of steps between kills")] = 5,
) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiles(folder / "tiles")
        epochs = max(2, round(measure_rate(folder) * minutes * 60 / STEPS_AN_EPOCH))
        recipe, steps = write_recipe(folder, epochs, kill_every / 4), epochs * STEPS_AN_EPOCH
        lives = [say(row) for row in killed(folder, recipe, kill_every * 60)]
        parts = [say(row) for row in in_peace(folder, recipe)]
        ended = [row for row in lives if row["ended_by_kill"]]
        say(
            {
                "kind": "summary",
                "minutes": minutes,
                "kill_every_minutes": kill_every,
                "steps": steps,
                "kills": len(ended),
                "equal": digest(folder / "killed", steps) == digest(folder / "peace", steps),
                "memory_change_percent": change(parts[1:], "resident_mib"),
                "memory_change_percent_between_lives": change(ended, "resident_mib"),
                "speed_change_percent": change(parts[1:], "tiles_per_second"),
                "speed_change_percent_between_lives": change(ended, "tiles_per_second"),
                "seconds": round(time.monotonic() - began),
                "versions": {name: version(name) for name in ("torch", "accelerate")},
                "python": platform.python_version(),
            }
        )


if __name__ == "__main__":
    typer.run(main)
