"""The trainer launched as a user launches it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]


TRAIN = str(ROOT / "moco_accel" / "train.py")


ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def launch(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=280, cwd=ROOT
    )


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]


def write_labelled(folder: Path, count: int, seed: int) -> None:
    """Tiles of noise, of a class that their stripes' direction tells, and colour does not."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count)
    images = []
    for label in labels:
        stripes = np.kron(draw.integers(0, 2, 5), np.ones(4))[:, None] * np.ones(20)
        pixels = 120 * (stripes if label else stripes.T)[..., None] + draw.integers(0, 130, (20, 20, 3))
        images.append(Image.fromarray(pixels.astype(np.uint8)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["rows", "columns"])})
    folder.mkdir()
    table = datasets.Dataset.from_dict({"image": images, "label": labels.tolist()}, features=features)
    table.to_parquet(folder / "tiles.parquet")


def train(recipe: Path, run: Path, *changes: str, resume: bool = False, processes: int = 1) -> str:
    command = [sys.executable] if processes == 1 else [*TORCHRUN, f"--nproc_per_node={processes}"]
    overrides = [word for change in changes for word in ("--set", change)]
    more = ["--resume"][: int(resume)]
    done = launch([*command, TRAIN], "--recipe", str(recipe), "--output-dir", str(run), *overrides, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr
