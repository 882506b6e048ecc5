"""Fuzz recipes, overrides and command lines: each loads, or is refused in one line within two seconds."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import huggingface_hub
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.mutated_recipes import (
    MAX_SECONDS,
    MUTATED,
    ODD,
    ODD_NUMBERS,
    ODD_TEXT,
    OVERRIDES,
    SHIPPED,
    load_or_refuse,
)

from moco_accel import train
from moco_accel.common.console import run_command
from moco_accel.common.errors import UserError
from moco_accel.evaluation import cli as eval_cli
from moco_accel.imagery import cli as data_cli
from moco_accel.recipe.text import MAX_RECIPE_BYTES, read_yaml
from moco_accel.verify import cli as verify_cli
from planner import cli as plan_cli

# each command ends with arguments that cannot exist, so that no command starts work
PROGRAMS = {
    "moco-plan": (plan_cli.app, ["--recipe", "no recipe"]),
    "moco-verify": (verify_cli.app, ["--recipe", "no recipe"]),
    "train": (train.app, ["--recipe", "no recipe"]),
    "moco-eval": (eval_cli.app, ["no run"]),
    "moco-data build": (data_cli.app, ["no imagery", "out"]),
    "moco-data inspect": (data_cli.app, ["no tiles"]),
    "moco-data preview": (data_cli.app, ["no tiles", "out.png"]),
}

FAST = settings(
    max_examples=120, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
THOROUGH = settings(FAST, max_examples=5000)


@cache
def options_of(program: str) -> list[str]:
    command = typer.main.get_command(PROGRAMS[program][0])
    inner = getattr(command, "commands", {}).get(program.partition(" ")[2], command)
    return [name for option in inner.params for name in option.opts if name.startswith("--")]


def is_typable(word: str) -> bool:
    return "\0" not in word and word.isascii()


WORDS = st.one_of(ODD_TEXT, ODD_NUMBERS.map(str), ODD.map(repr), OVERRIDES).filter(is_typable)


@st.composite
def command_lines(draw: st.DrawFn, program: str) -> list[str]:
    """Draw known options with odd values, odd options and odd words."""
    words: list[str] = []
    for _ in range(draw(st.integers(0, 4))):
        option = draw(st.sampled_from(options_of(program)) | ODD_TEXT.filter(is_typable))
        words += draw(st.sampled_from([[option], [option, draw(WORDS)], [f"{option}={draw(WORDS)}"], [draw(WORDS)]]))
    return [*program.split(), *words, *PROGRAMS[program][1]]


def check_recipe(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(raw)
        load_or_refuse(path)


@FAST
@given(MUTATED)
def test_mutated_recipes_load_or_are_refused_in_one_line(raw: bytes) -> None:
    check_recipe(raw)


@pytest.mark.slow
@THOROUGH
@given(MUTATED)
def test_five_thousand_mutated_recipes(raw: bytes) -> None:
    check_recipe(raw)


@FAST
@given(st.lists(OVERRIDES, min_size=1, max_size=3))
def test_overrides_load_or_are_refused_in_one_line(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(SHIPPED[0])
        load_or_refuse(path, overrides)


@pytest.mark.parametrize("program", PROGRAMS)
def test_odd_command_lines_end_in_one_line(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    @settings(FAST, max_examples=25)
    @given(command_lines(program))
    def check(words: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", words)
        start = time.process_time()
        with pytest.raises(SystemExit) as ending:
            run_command(PROGRAMS[program][0])
        printed = capsys.readouterr().err
        assert time.process_time() - start < MAX_SECONDS
        assert ending.value.code == 2 or "--help" in words or "--list-gpus" in words, printed
        if ending.value.code == 2:
            *before, last = printed.splitlines()
            assert last.startswith("error: "), printed
            assert all(line == "" or line.startswith("searching for scenes in ") for line in before), printed

    check()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"x" * (MAX_RECIPE_BYTES + 1), "bytes; a recipe has at most 262144"),
        (b"[" * MAX_RECIPE_BYTES, "deeper than 20 levels"),
        (b"- " * 1000, "deeper than 20 levels"),
        (b"[" + b"a, " * 80_000 + b"]", "more than 4000 values"),
        (b"a: &a [x]\nb: [*a, *a]\n", "line 1: &anchors, *aliases and !tags are not supported"),
        (b"a: !!python/object/apply:os.system [exit]", "line 1: &anchors, *aliases and !tags are not supported"),
        (b"a: {lr: 1, lr: 2}", "line 1: 'lr' is given 2 times; once works"),
        (b"a: 1\n---\nb: 2", "expected a single document"),
        (b"a: \xff", "can't decode byte 0xff"),
        (b"a: \0", "special characters are not allowed"),
        (b"a: " + b"9" * 5000, "Exceeds the limit"),
        (b"\ta: 1", "cannot start any token"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_bombs_are_refused_quickly(raw: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(raw)
    start = time.process_time()
    with pytest.raises(UserError, match=reason.replace("*", r"\*")):
        read_yaml(tmp_path / "x.yaml")
    assert time.process_time() - start < MAX_SECONDS


def test_special_files_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zeros.yaml").symlink_to("/dev/zero")
    with (tmp_path / "vast.yaml").open("wb") as file:
        file.truncate(100 << 20)
    for name, reason in (
        ("pipe", "does not exist"),
        ("zeros", "does not exist"),
        ("vast", "104857600 bytes; a recipe"),
    ):
        with pytest.raises(UserError, match=reason):
            read_yaml(tmp_path / f"{name}.yaml")


def test_numbers_are_yaml_1_2(tmp_path: Path) -> None:
    """YAML 1.1 would read octal and sexagesimal numbers."""
    (tmp_path / "x.yaml").write_text("[010, 1:30, 0x10, 1_000, 1e-4, .inf, no, true, =, <<]")
    assert read_yaml(tmp_path / "x.yaml") == [10, "1:30", "0x10", 1000, 1e-4, ".inf", "no", True, "=", "<<"]
