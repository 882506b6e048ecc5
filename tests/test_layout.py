"""The architecture's rules, read off the source."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "moco_accel").rglob("*.py"))
FLAT = [path for path in MODULES if path.parent.name == "moco_accel"]
# a module may import from its own rank or a lower one; a folder is one rank's
RANKS = [
    {"recipe_text", "bands", "recipe_tiles", "recipe_machine", "recipe_rules", "recipe"},
    {"atomic_files", "console", "launching", "tile_facts", "band_counter", "order", "drawing", "view_parameters"}
    | {"collectives", "encoders", "loss", "photometric", "stopping", "manifest", "tensor_files", "random_states"}
    | {"sharding", "weight_names", "weight_facts", "weight_files"}
    | {"agreement", "phases", "heartbeats", "causes", "watching", "whereabouts", "card_memory", "folder_lock"},
    {"reading", "moco", "augment", "optim"},
    {"step", "tile_statistics", "damage", "optimizer_state", "checkpoint", "run_folder"},
    {"tracking", "run_health", "feature_health", "run_rows", "training_console", "curves"},
    {"data", "resolve", "monitor", "evaluation", "neighbours", "verify_networks"}
    | {"labelled_pool", "splits", "splits_text", "linear_probe", "eval_scores", "near_copies", "eval_pictures"},
    {"resume_rules", "saving", "healing", "weights"},
    {"judgement", "split_sources", "eval_report"},
    {"examination"},
    {"starting", "rendezvous", "likeness"},
    {"meeting"},
    {"loop", "verify"},
    {"train", "eval_cli", "verify_cli", "report_cli", "looking"},
    {"imagery", "export"},
]


def unit(path: Path) -> str:
    """A module directly in moco_accel, or the folder it is in."""
    inside = path.relative_to(ROOT / "moco_accel")
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_moco_accel_never_imports_the_planner(path: Path) -> None:
    assert not any(name.split(".")[0] == "planner" for name in imported(path))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_never_point_backwards(path: Path) -> None:
    if path.stem == "__init__":
        return
    rank = next(i for i, units in enumerate(RANKS) if unit(path) in units)
    later = set().union(*RANKS[rank + 1 :])
    found = {name.split(".")[1] for name in imported(path) if name.startswith("moco_accel.")} & later
    assert found <= ({"imagery"} if path.stem == "eval_cli" else set())  # which says whose imagery the demo's is


def test_the_step_touches_no_disk_yaml_console_or_command_line() -> None:
    forbidden = {"yaml", "rich", "typer", "pathlib", "json", "os", "moco_accel.console", "moco_accel.checkpoint"}
    for name in ("step", "moco", "loss", "encoders", "collectives"):
        assert not imported(ROOT / "moco_accel" / f"{name}.py") & forbidden


def test_no_pickle() -> None:
    banned = ("pickle", "torch.load(", "torch.save(", "joblib", "shelve", "marshal")
    written = {"for_torchgeo.py": "torch.save("}  # of a plain dictionary of tensors, as torch hub wants; never read
    for path in [*MODULES, *(ROOT / "planner").glob("*.py")]:
        found = [
            word
            for word in set(banned) - {written.get(path.name)}
            if word in path.read_text().replace("no pickle", "").replace("allow_pickle=False", "")
        ]
        assert not found, f"{path.name}: {found}"


@pytest.mark.parametrize("path", FLAT, ids=lambda path: path.stem)
def test_no_file_shadows_a_top_level_module(path: Path) -> None:
    """`accelerate launch moco_accel/train.py` puts moco_accel/ first on sys.path."""
    if path.stem in {"__init__", "train"}:
        return
    assert path.stem not in sys.stdlib_module_names
    spec = importlib.util.find_spec(path.stem)
    assert spec is None, f"{path.stem} would hide {spec.origin}"


def test_files_stay_small() -> None:
    for path in [*MODULES, *(ROOT / "planner").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 260, path.name
