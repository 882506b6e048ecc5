"""The architecture's rules, read from the source: wings import downwards, without cycles."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the ground up: a wing imports from itself and from the wings listed before it.
TRAINER_WINGS = {
    "common": "console, errors, files that are whole at any time",
    "recipe": "the contract between planner and trainer",
    "processes": "ranks that start, agree, are watched and stop together",
    "images": "the files that tiles and scenes come in",
    "sources": "parquet, arrow, tar, folders, the hub",
    "tiles": "tiles of any source, their statistics, their order",
    "networks": "encoders, MoCo, loss, collectives, FSDP2",
    "views": "crops and augmentation",
    "checkpoints": "a run's folder, saved and resumed",
    "pretrained": "weights of other libraries and of other runs",
    "evaluation": "frozen features judged: moco-eval",
    "training": "the step, the loop and what a run shows",
    "inspection": "moco-data inspect and preview",
    "scenes": "scene files: bands, grids, windows",
    "imagery": "moco-data build and demo",
    "export": "an encoder for other libraries",
    "verify": "moco-verify",
    "report": "moco-report",
    "train": "the entry point",
}
PLANNER_WINGS = {
    "cards": "GPUs by name and by size",
    "trace": "the trainer's step on fake tensors",
    "evidence": "measured steps, and the error of predictions",
    "memory": "from a trace to bytes on a card",
    "time": "operations, and communication between nodes",
    "search": "the best recipe that fits",
    "report": "tables, sentences and JSON",
    "answer": "options, recipe, launch commands",
    "cli": "moco-plan",
}
MAX_FILE_LINES = 260
MAX_WING_FILES = 15


def modules_of(package: str) -> dict[str, Path]:
    """Modules by dotted name; a package by that of its folder."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


TRAINER, PLANNER = modules_of("moco_accel"), modules_of("planner")
MODULES = TRAINER | PLANNER


def imports_of(source: str, known: Iterable[str]) -> set[str]:
    """The modules among `known` that `source` imports anywhere, also inside functions and under TYPE_CHECKING."""
    known, found = set(known), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & known or {node.module}
    return found & known


def wing(module: str) -> str | None:
    """`moco_accel.tiles.sampler` → `tiles`; None for the package itself."""
    return module.split(".")[1] if "." in module else None


def upward_imports(graph: Mapping[str, set[str]], wings: Iterable[str]) -> list[str]:
    """Imports of a wing that is listed later, as `importer -> imported`."""
    floor = {name: number for number, name in enumerate(wings)}
    return [
        f"{module} -> {imported}"
        for module, all_imported in graph.items()
        for imported in all_imported
        if module.split(".")[0] == imported.split(".")[0] and wing(module) and wing(imported)
        if floor[str(wing(module))] < floor[str(wing(imported))]
    ]


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return one import cycle; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


GRAPH = {name: imports_of(path.read_text(), MODULES) - {name} for name, path in MODULES.items()}
TRAINER_GRAPH = {name: GRAPH[name] for name in TRAINER}


def test_the_planner_imports_the_trainer_and_not_the_reverse() -> None:
    assert not [name for name in TRAINER if any(imported in PLANNER for imported in GRAPH[name])]


def test_every_wing_has_a_line() -> None:
    assert {wing(name) for name in TRAINER} - {None} <= set(TRAINER_WINGS) | {"assets"}
    assert {wing(name) for name in PLANNER} - {None} == set(PLANNER_WINGS)


def test_no_import_runs_up() -> None:
    assert upward_imports(TRAINER_GRAPH, TRAINER_WINGS) == []
    assert upward_imports({name: GRAPH[name] for name in PLANNER}, PLANNER_WINGS) == []


def test_no_import_cycle() -> None:
    assert find_cycle(GRAPH) == []


@pytest.mark.parametrize(
    "source",
    ["from moco_accel.training.step import train_step", "def late():\n    from moco_accel.training import step"],
    ids=["at the top", "inside a function"],
)
def test_a_planted_violation_is_found(source: str) -> None:
    planted = "moco_accel.networks.moco"
    graph = TRAINER_GRAPH | {planted: GRAPH[planted] | imports_of(source, MODULES)}
    assert upward_imports(graph, TRAINER_WINGS) == [f"{planted} -> moco_accel.training.step"]
    assert {planted, "moco_accel.training.step"} <= set(find_cycle(graph))


def test_a_planted_cycle_inside_a_wing_is_found() -> None:
    planted = {"moco_accel.recipe.schema": GRAPH["moco_accel.recipe.schema"] | {"moco_accel.recipe.load"}}
    assert upward_imports(TRAINER_GRAPH | planted, TRAINER_WINGS) == []
    assert {"moco_accel.recipe.schema", "moco_accel.recipe.load"} <= set(find_cycle(TRAINER_GRAPH | planted))


def test_the_step_touches_no_disk_yaml_console_or_command_line() -> None:
    forbidden = {"yaml", "rich", "typer", "pathlib", "json", "os"}
    forbidden |= {"moco_accel.common.console", "moco_accel.checkpoints.checkpoint"}
    for name in ("training.step", "networks.moco", "networks.loss", "networks.encoders", "networks.collectives"):
        assert not imports_of(TRAINER[f"moco_accel.{name}"].read_text(), forbidden)


def test_no_pickle() -> None:
    banned = ("pickle", "torch.load(", "torch.save(", "joblib", "shelve", "marshal")
    written = {"to_torchgeo.py": "torch.save("}  # of a plain dictionary of tensors, as torch hub wants; never read
    for path in MODULES.values():
        found = [
            word
            for word in set(banned) - {written.get(path.name)}
            if word in path.read_text().replace("no pickle", "").replace("allow_pickle=False", "")
        ]
        assert not found, f"{path.name}: {found}"


@pytest.mark.parametrize("name", sorted({wing(name) or "" for name in TRAINER} - {"", "train"}))
def test_no_wing_shadows_a_top_level_module(name: str) -> None:
    """`accelerate launch moco_accel/train.py` puts moco_accel/ first on sys.path."""
    assert name not in sys.stdlib_module_names
    spec = importlib.util.find_spec(name)
    assert spec is None or spec.origin is None, f"{name} would hide {spec.origin}"  # None: a folder of tests


def test_files_and_wings_stay_small() -> None:
    for name, path in MODULES.items():
        assert len(path.read_text().splitlines()) <= MAX_FILE_LINES, name
    for folder in {path.parent for path in MODULES.values()}:
        assert len(list(folder.glob("*.py"))) <= MAX_WING_FILES, folder


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}), ids=lambda path: path.name)
def test_every_wing_says_what_it_does_and_hands_out_nothing(folder: Path) -> None:
    tree = ast.parse((folder / "__init__.py").read_text())
    assert ast.get_docstring(tree)
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
