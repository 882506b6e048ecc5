"""A wrong command line ends in one line with option, value, rule and a value that works, and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from PIL import Image

from moco_accel import train
from moco_accel.common.console import run_command
from moco_accel.evaluation import cli as eval_cli
from moco_accel.imagery import cli as data_cli
from moco_accel.verify import cli as verify_cli
from planner import cli as plan_cli

APPS = {
    "moco-data": data_cli.app,
    "moco-plan": plan_cli.app,
    "moco-eval": eval_cli.app,
    "moco-verify": verify_cli.app,
    "train": train.app,
}
Run = Callable[..., str]


@pytest.fixture
def run_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `program arguments…`, expects exit code 2 and returns what is printed to stderr."""

    def run(program: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command(APPS[program])
        assert ended.value.code == 2
        return capsys.readouterr().err.removesuffix("\n")

    return run


WRONG = [
    ("moco-data build s o --stride abc", "--stride='abc': ", "; --stride 112 works"),
    ("moco-data build s o --nodata abc", "--nodata='abc': ", "; --nodata 0 works"),
    ("moco-data build s o --min-majority x", "--min-majority='x': ", "; --min-majority 0.6 works"),
    ("moco-data build s o --workers [/b]", "--workers='[/b]': ", "; --workers 1 works"),
    ("moco-data build s o --tile-size 8.5", "--tile-size='8.5': ", "; --tile-size 224 works"),
    ("moco-data inspect s --sample -1", "--sample='-1': ", "equal to 0; --sample 1000 works"),
    ("moco-data inspect s --nodata x", "--nodata='x': ", "; --nodata 0 works"),
    ("moco-data preview s o.png --tiles 0", "--tiles='0': ", "; --tiles 6 works"),
    ("moco-plan --gpus x", "--gpus='x': ", "; --gpus 2 works"),
    ("moco-plan --tiles 1", "--tiles='1': ", "equal to 2; --tiles 500000 works"),
    ("moco-plan --precision fp8", "--precision='fp8': ", "is not one of 'no', 'bf16', 'fp16'"),
    ("moco-data build s", "OUT is missing; ", "e.g. moco-data build my_images data/tiles"),
    ("moco-eval", "RUN_OR_CHECKPOINT is missing; ", "e.g. moco-eval runs/demo --train-source data/demo/train"),
    ("moco-verify", "--recipe is missing; ", "e.g. moco-verify --recipe recipes/dual8gb.yaml"),
    ("train", "--recipe is missing; ", "moco_accel/train.py --recipe recipes/dual8gb.yaml"),
    ("moco-data build s o --bands", "Option '--bands'", "; --bands B4,B3,B2,B8 works"),
    ("moco-data preview s o --set", "Option '--set'", "; --set data.source=data/tiles works"),
    ("moco-verify --recipe", "Option '--recipe'", "; --recipe recipes/dual8gb.yaml works"),
    ("train --resume=yes", "Option '--resume'", "; --resume alone works"),
    ("moco-data build s o --tile-sze 3", "No such option: --tile-sze", "--tile-size)"),
    ("moco-data build s o p", "Got unexpected extra argument", "; --help lists the options"),
    ("moco-data build s o --class-names a", "--class-names='a' ", "--label-raster, which is absent; leave it out"),
    ("moco-data build s o --tile-size 4", "--tile-size=4 must be at least 8", "; --tile-size 224 works"),
    ("moco-data build s o --bands B4,b04", "--bands B4, b04: ", "B4; name it once: B4"),
]


@pytest.mark.parametrize(("command", "start", "end"), WRONG, ids=[command for command, *_ in WRONG])
def test_a_wrong_option_is_one_line_with_a_value_that_works(run_wrong: Run, command: str, start: str, end: str) -> None:
    line = run_wrong(*command.split())
    assert line.startswith(f"error: {start}")
    assert end in line
    assert "\n" not in line


NUMBERS = {"stride", "nodata", "min_majority", "workers", "gpus", "tiles"}


def numbers_without_default() -> list[tuple[str, ...]]:
    """Return (program, command, option) of options whose value is a number."""
    found = []
    for program, app in APPS.items():
        root = typer.main.get_command(app)
        for name, command in getattr(root, "commands", {"": root}).items():
            for option in command.params:
                if option.default is None and option.name in NUMBERS:
                    found.append((program, *([name] if name else []), option.opts[0]))
    return found


@pytest.mark.parametrize("words", numbers_without_default(), ids=" ".join)
def test_the_suggested_value_is_a_number(run_wrong: Run, words: tuple[str, ...]) -> None:
    line = run_wrong(*words)
    assert line.startswith(f"error: Option '{words[-1]}' requires an argument; {words[-1]} ")
    assert float(line.removesuffix(" works").split()[-1]) >= 0


def test_a_name_that_is_not_utf8_is_one_line(run_wrong: Run, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "src" / os.fsdecode(b"d\xfc.png"), format="png")
    lines = run_wrong("moco-data", "build", f"{tmp_path}/src", f"{tmp_path}/out", "--tile-size", "32", "--workers", "1")
    last = lines.splitlines()[-1]
    assert last.startswith("error: none of the images in ")
    assert "d\\xfc.png: has a name that is no UTF-8; rename it" in last


def test_no_arguments_print_only_the_help(run_wrong: Run) -> None:
    assert "error" not in run_wrong("moco-data")
