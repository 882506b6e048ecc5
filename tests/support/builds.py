"""Run `moco-data` in this process."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from moco_accel.imagery.build import build_tiles
from moco_accel.imagery.cli import app
from moco_accel.imagery.options import BuildOptions

OPTIONS = {"tile_size": 100, "max_shard_mb": 1, "labels_from_folders": True}


def save_picture(path, height, width, bands=3, seed=0, **kwargs):
    """Save random pixels of 8 bits; return them [height, width, bands], or [height, width] for one band."""
    shape = (height, width, bands) if bands > 1 else (height, width)
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kwargs)
    return array


def build(source, out, workers=1, overwrite=False, on_progress=lambda *counts: None, **options):
    return build_tiles(source, out, BuildOptions(**options), workers, overwrite, on_progress)


def run_moco_data(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def run_command(*arguments):
    """Run a command of `moco-data`, which may exit."""
    app(list(map(str, arguments)), standalone_mode=False)


def refused(capfd, *arguments):
    """Run a command that must fail, and return its only line of error."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_command(*arguments)
    out, err = capfd.readouterr()
    assert (stopped.value.code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if "error:" in line]
    return line


def file_contents(out):
    """Return the files below a folder, without those of an unfinished build."""
    names = (path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file())
    return {name.as_posix(): (out / name).read_bytes() for name in names if name.parts[0] != ".build"}


def interrupt_build(source, out, tiles, overwrite=False, **options):
    """Run a build that is interrupted once `tiles` tiles are kept."""

    def interrupt(stage, done, total, kept):
        if stage == "windows" and kept >= tiles:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, out, overwrite=overwrite, on_progress=interrupt, **options)
