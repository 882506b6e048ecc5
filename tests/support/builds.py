"""moco-data build in this process."""

from __future__ import annotations

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from moco_accel.imagery.build import build_tiles
from moco_accel.imagery.cli import app
from moco_accel.imagery.options import Options


def save(path, height, width, bands=3, seed=0, **kwargs):
    shape = (height, width, bands) if bands > 1 else (height, width)
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kwargs)
    return array


def build(source, out, workers=1, overwrite=False, on_progress=None, **options):
    return build_tiles(source, out, Options(**options), workers, overwrite, on_progress)


def cli(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


OPTIONS = {"tile_size": 100, "max_shard_mb": 1, "labels_from_folders": True}


def contents(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def stop_at(tiles):
    def hear(stage, done, total, kept):
        if stage == "windows" and kept >= tiles:
            raise KeyboardInterrupt

    return hear
