"""Commands, files, links and messages in README and docs exist; commands that can run here are run."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from support.recipes import small_recipe
from support.tile_files import write_labelled
from support.trainer_processes import train

from moco_accel.evaluation import cli as eval_cli
from moco_accel.export import cli as export_cli
from moco_accel.imagery import cli as data_cli
from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.report import cli as report_cli
from moco_accel.train import app as train_app
from moco_accel.verify import cli as verify_cli
from planner import cli as plan_cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
APPS = {
    "moco-data": data_cli.app,
    "moco-plan": plan_cli.app,
    "moco-eval": eval_cli.app,
    "moco-verify": verify_cli.app,
    "moco-report": report_cli.app,
    "moco-export": export_cli.app,
}
_START = re.compile(r"moco-data \w+ [^-]|moco-(?!data)[a-z]+ \S|accelerate launch -|torchrun -|python benchmarks/")
_FOLDERS = "moco_accel|planner|tests|benchmarks|recipes|accelerate_configs|docs"
TRAIN = "moco_accel/train.py"
WRITTEN_BY_THE_PLANNER = ("recipes/dual8gb_13bands.yaml", "recipes/4x8x24gb.yaml")
NOT_RUN = {
    "moco-plan": "tests/planner run it; half a minute each",
    "moco-verify": "tests/verify run it",
    "S2A_MSIL1C": "needs a Sentinel-2 product; tests/imagery make one",
    "blanchon/": "needs the hub",
    "--pair-with": "tests/imagery run it",
    "--push-to-hub": "needs the hub; tests/export run it against a local server",
    "--split": "needs places or words for each tile; tests/evaluation run each",
}


@dataclass(frozen=True)
class Command:
    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def commands() -> list[Command]:
    """Return the commands in all pages, each once; a bare program or subcommand name is not one."""
    found: dict[tuple[str, ...], Command] = {}
    for page in PAGES:
        text = page.read_text()
        blocks = [block.replace("\\\n", " ") for block in re.findall(r"```\w*\n(.*?)```", text, re.S)]
        lines = [line.partition("  #")[0] for block in blocks for line in block.splitlines()]
        prose = re.sub(r"```.*?```", "", text, flags=re.S)
        lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
        for line in lines:
            line = line.removeprefix("ACCELERATE_USE_CPU=true ")
            if _START.match(line) and "…" not in line:
                words = tuple(shlex.split(line))
                found.setdefault(words, Command(page.name, words))
    return list(found.values())


COMMANDS = commands()


def parse(app: typer.Typer, words: list[str]) -> None:
    """Parse `words` as `app` would, without running it; raise typer's error for a wrong option."""
    command = typer.main.get_command(app)
    if words and hasattr(command, "commands") and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    command.make_context("command", list(words))


def test_pages_have_commands_of_every_program() -> None:
    assert {command.words[0] for command in COMMANDS} >= {*APPS, "accelerate", "torchrun", "python"}
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_options_fields_and_files_of_a_command_exist(command: Command) -> None:
    first, rest = command.words[0], list(command.words[1:])
    if first in APPS:
        parse(APPS[first], rest)
    elif first == "python":
        assert (ROOT / rest[0]).is_file()
    else:
        arguments = rest[rest.index(TRAIN) + 1 :]
        parse(train_app, arguments)
        if "--config_file" in rest:
            assert (ROOT / rest[rest.index("--config_file") + 1]).is_file()
        recipe = arguments[arguments.index("--recipe") + 1]
        overrides = [value for option, value in pairwise(arguments) if option == "--set"]
        if recipe not in WRITTEN_BY_THE_PLANNER:
            load_recipe(ROOT / recipe, overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_the_text_exist(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", page.read_text()):
        for name in re.findall(rf"(?<![\w./])(?:{_FOLDERS})/[\w./*-]*", code):
            assert list(ROOT.glob(name)) or name in WRITTEN_BY_THE_PLANNER, name


def test_error_messages_in_the_table_of_resume_md_are_in_the_code() -> None:
    table = (ROOT / "docs" / "resume.md").read_text().partition("## Errors")[2]
    source = " ".join(path.read_text() for path in (ROOT / "moco_accel").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message that continues on the next line
    for message in re.findall(r"^\| `([^`]+)`", table, re.M):
        for part in re.split(r"…|\(.*?\)", message):
            assert part.strip() in source, message


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_targets(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_page_of_recipe_fields_is_what_the_code_writes() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "recipe_page.py"))["page"]
    assert (ROOT / "docs" / "recipe.md").read_text() == page(), "run: make docs"


def runnable() -> list[Command]:
    return [
        command
        for command in COMMANDS
        if command.words[0] in APPS and not any(name in str(command).partition(": ")[2] for name in NOT_RUN)
    ]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the pages name: imagery, tiles, labelled tiles, runs."""
    desk = tmp_path_factory.mktemp("desk")
    draw = np.random.default_rng(0)
    for folder in ("YOUR_IMAGES", "SRC"):
        (desk / folder).mkdir()
        for number in range(3):
            pixels = draw.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(desk / folder / f"{number}.png")
    for side, count in (("train", 40), ("test", 20)):
        (desk / "data" / "labelled").mkdir(parents=True, exist_ok=True)
        write_labelled(desk / "data" / "labelled" / side, count, count)
    for name in ("tiles", "s2"):
        (desk / "data" / name).mkdir()
        shutil.copy(desk / "data" / "labelled" / "train" / "tiles.parquet", desk / "data" / name)
    labelled = {f"{side}_source": str(desk / "data" / "labelled" / side) for side in ("train", "test")}
    recipe = small_recipe(data={"source": str(desk / "data" / "tiles")}, evaluation=labelled, schedule={"epochs": 1})
    save_recipe(recipe, desk / "small.yaml")
    train(desk / "small.yaml", desk / "runs" / "demo")
    for name in ("dual8gb", "dual8gb_13bands", "mine"):
        shutil.copytree(desk / "runs" / "demo", desk / "runs" / name)
    (desk / "RUN").symlink_to(desk / "runs" / "demo")
    return desk


@pytest.mark.parametrize("command", runnable(), ids=str)
def test_a_command_of_the_pages_runs(command: Command, desk: Path) -> None:
    program = Path(sys.executable).with_name(command.words[0])
    words = list(command.words[1:])
    if words[0] == "build":
        shutil.rmtree(desk / words[2], ignore_errors=True)
    if command.words[0] == "moco-export":
        shutil.rmtree(desk / words[1], ignore_errors=True)
    done = subprocess.run(
        [str(program), *words],
        cwd=desk,
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
