"""Fork ranks from one process, so that torch is imported once for all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from moco_accel.recipe.encoder_names import VIT_SIZES, VitSize

MAX_SECONDS = 60.0


def prepare() -> None:
    """Make training fast in the forks, and import what they need."""
    torch.set_num_threads(1)
    VIT_SIZES["tiny"] = VitSize(192, 1, 3)
    Image.preinit()


def fork(run: Callable[[], object], log: Path) -> int:
    """Call `run` in a fork that ends with its exit code; return its process id. Its output is appended to `log`."""
    process = os.fork()
    if process:
        return process
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 0
    try:
        run()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stderr.flush()
    os._exit(code)
