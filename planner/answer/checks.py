"""Check the options of `moco-plan` before anything is traced. Each check raises UserError for the first mistake."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from moco_accel.common.errors import UserError
from moco_accel.recipe.encoder_names import ENCODER_NAMES, closest_encoder
from moco_accel.recipe.load import load_recipe
from moco_accel.recipe.rules import nearest_multiples
from moco_accel.recipe.schema import Recipe
from planner.answer.request import OPTIMIZERS, Request
from planner.cards.fleet import Fleet

_NOT_WITH_RECIPE = (
    "encoder", "image_size", "bands", "global_batch", "precision", "optimizer", "contrast_over", "epochs", "output",
)  # fmt: skip
_REPORT_ENDINGS = (".svg", ".html", ".txt")
_KEPT_SECTIONS = ("encoder", "moco", "optimizer", "schedule", "augment", "data", "evaluation", "run")


def check_request(request: Request, tiles: int | None) -> None:
    """Check encoder, optimizer and global batch."""
    if request.encoder is not None and request.encoder not in ENCODER_NAMES:
        raise UserError(f"--encoder={request.encoder} is not known; --encoder {closest_encoder(request.encoder)} works")
    if request.optimizer not in (*OPTIMIZERS, "lars_8bit"):
        raise UserError(f"--optimizer={request.optimizer} is not known; one of: {', '.join(OPTIMIZERS)}")
    batch, gpus = request.global_batch_size, request.num_devices
    if batch < 2:
        raise UserError(f"--global-batch={batch} leaves no negatives; --global-batch {max(2, gpus)} works")
    if batch % gpus:
        nearest = nearest_multiples(max(batch, gpus), gpus)
        of_nodes = f" ({request.nodes} nodes of {request.gpus})" if request.nodes > 1 else ""
        raise UserError(f"--global-batch={batch} does not divide over {gpus} GPUs{of_nodes}; nearest: {nearest}")
    if tiles is not None and tiles < batch:
        most = tiles // gpus * gpus
        works = f"--global-batch {most}" if most >= 2 else f"--tiles {2 * gpus}"
        raise UserError(f"--tiles={tiles} is less than one batch of {batch}; {works} works")


def check_recipe_options(recipe_file: Path, given: list[str]) -> None:
    """Check that no option that `--recipe` overrides is among the `given` ones."""
    for name in given:
        if name in _NOT_WITH_RECIPE:
            option = name.replace("_", "-")
            raise UserError(f"--{option} has no effect with --recipe; omit it, or edit {recipe_file}")


def check_nodes(nodes: int | None, recipe: Recipe | None, recipe_file: Path | None) -> None:
    """Check that `--nodes` is at least 1 and the recipe's number."""
    if nodes is not None and nodes < 1:
        raise UserError(f"--nodes={nodes} must be at least 1; --nodes 1 works")
    if recipe is not None and nodes not in (None, own := recipe.hardware.num_nodes):
        raise UserError(
            f"--nodes={nodes} but hardware.num_nodes={own} in {recipe_file}; --nodes {own} works, or a new plan "
            "without --recipe"
        )


def check_recipe_hardware(cards: Fleet, recipe: Recipe, recipe_file: Path | None) -> None:
    """Check that a recipe is for this number of GPUs, in a precision that they have."""
    hardware, card = recipe.hardware, cards.limiting
    per_node = hardware.num_devices // hardware.num_nodes
    if len(cards.cards) != per_node:
        over = f" over hardware.num_nodes={hardware.num_nodes}" if hardware.num_nodes > 1 else ""
        raise UserError(
            f"--gpus={len(cards.cards)} but hardware.num_devices={hardware.num_devices}{over} in {recipe_file}; "
            f"--gpus {per_node} works, or a new plan without --recipe"
        )
    if recipe.memory.mixed_precision == "bf16" and not card.has_bf16:
        raise UserError(
            f"memory.mixed_precision=bf16 in {recipe_file} but {card.name} has no bf16; "
            "memory.mixed_precision=fp16 works"
        )


def check_writable(option: str, path: Path, works: str) -> None:
    """Check that the file that `option` names can be written, and create its folder; `works` is a value that works."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}={path} cannot be written: {error}; {option} {works} works") from None
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{option}={path} cannot be written; {option} {works} works")


def check_report_path(path: Path) -> None:
    """Check that `Page.save` knows the ending of `path` and can write it, and create its folder."""
    if path.suffix not in _REPORT_ENDINGS:
        raise UserError(f"--save={path} must end in {', '.join(_REPORT_ENDINGS)}; --save plan.svg works")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f"--save={path} cannot be written: {error}; --save plan.svg works") from None


def output_path(path: Path, recipe: Recipe, by_default: bool) -> tuple[Path, str | None]:
    """Return where to write `recipe`; by default, a file that someone changed is kept, and the next name is taken.

    Returns:
        The path, and a note if it is not `path`.
    """
    check_writable("--output", path, "recipe.yaml")
    kept = _changed_field(path, recipe) if by_default else None
    if kept is None:
        return path, None
    names = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2))
    free = next(name for name in names if _changed_field(name, recipe) is None)
    return free, f"{path} is kept, because it {kept}; the recipe of this plan is {free}"


def _changed_field(path: Path, recipe: Recipe) -> str | None:
    """Return what differs from `recipe` in an existing file, apart from how it fits its cards; None if nothing does."""
    if not path.exists():
        return None
    try:
        old, new = load_recipe(path).model_dump(), recipe.model_dump()
    except UserError:
        return "is no recipe that can be read"
    for section in _KEPT_SECTIONS:
        for field, value in new[section].items():
            if old[section][field] != value:
                return f"has {section}.{field}={old[section][field]}, not {value}"
    return None
