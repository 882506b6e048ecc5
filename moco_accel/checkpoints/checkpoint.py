"""Checkpoints: tensors as safetensors, the rest as JSON and YAML; no pickle. Written aside, synced, renamed, read back.

RUN/checkpoints/step_00000200/{model,optimizer,random}.safetensors, state.json, recipe.yaml, manifest.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from moco_accel.checkpoints.manifest import (
    DamagedError,
    Manifest,
    check_hashes,
    read_checked,
    read_manifest,
    write_hashed,
    write_manifest,
)
from moco_accel.checkpoints.optimizer_state import optimizer_layout, optimizer_tensors, restore_optimizer
from moco_accel.checkpoints.tensor_files import (
    Layout,
    layout_bytes,
    layout_of,
    read_layout,
    read_tensors,
    tensor_chunks,
)
from moco_accel.common.atomic_files import strict_json, sync
from moco_accel.common.errors import UserError
from moco_accel.networks.encoders import build_encoder
from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.networks.sharding import is_divided, local, nobody, part_of
from moco_accel.processes.control_group import OtherFailed
from moco_accel.recipe.data_sections import Section
from moco_accel.recipe.load import explain, load_recipe, recipe_yaml
from moco_accel.recipe.schema import Recipe
from moco_accel.recipe.text import MAX_RECIPE_BYTES

MODEL, OPTIMIZER, RANDOM = (f"{name}.safetensors" for name in ("model", "optimizer", "random"))
STATE, RECIPE = "state.json", "recipe.yaml"
FILES = (MODEL, OPTIMIZER, RANDOM, STATE, RECIPE)
_RANDOM = "states"
_MAX_STATE_BYTES = 1 << 16
_MAX_TENSOR_BYTES = 1 << 36  # 64 GiB: what is not checked by then was made to keep a reader busy
_MAX_RANDOM_BYTES = 1 << 28


class Scaler(Section):
    """What changes of a gradient scaler."""

    scale: float = Field(gt=0, allow_inf_nan=False)
    growth_tracker: int = Field(ge=0)


class State(Section):
    """All of a run's state that is neither a tensor nor the recipe."""

    format: Literal[1] = 1
    step: int = Field(ge=0, description="optimizer steps done: the position in data and schedules")
    tile_count: int = Field(ge=1, description="of the whole source; the order of tiles hangs on it")
    reading: str = Field(max_length=64, description="checksum of how tiles lie in shards; their order may hang on it")
    processes: int = Field(ge=1)
    micro_batch_asked: int = Field(ge=1, description="recipe.yaml's may be smaller, after an out-of-memory error")
    skipped_steps: int = Field(0, ge=0)
    scaler: Scaler | None = None
    versions: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """One that has been read and found whole."""

    folder: Path
    recipe: Recipe
    state: State


def write_checkpoint(
    final: Path,
    recipe: Recipe,
    state: State,
    moco: MoCo,
    optimizer: torch.optim.Optimizer,
    random_states: Tensor,
    meet: Callable[[], object] = nobody,
) -> None:
    """Write `final` and read it back. Raises OSError, and DamagedError when the disk gives back something else.

    Where processes divide tensors, the others `send_parts` meanwhile, and all `meet` before each.
    """
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    manifest: Manifest = {}
    try:
        for name, tensors in (*_tensors_by_file(moco, optimizer).items(), (RANDOM, {_RANDOM: random_states})):
            manifest[name] = write_hashed(partial / name, tensor_chunks(tensors, meet))
        for name, content in ((STATE, json.dumps(state.model_dump()).encode()), (RECIPE, recipe_yaml(recipe))):
            manifest[name] = write_hashed(partial / name, [content])
        write_manifest(partial, manifest)
        if final.exists():  # a damaged one
            final.replace(final.with_suffix(".removed"))
        partial.rename(final)
    except (OSError, OtherFailed):
        shutil.rmtree(partial, ignore_errors=True)  # room for what the user may still want to save
        raise
    sync(final.parent)
    check_hashes(final, read_manifest(final, FILES), FILES)


def send_parts(moco: MoCo, optimizer: torch.optim.Optimizer, meet: Callable[[], object]) -> None:
    """What a process does while the first one writes."""
    for tensors in _tensors_by_file(moco, optimizer).values():
        for _ in tensor_chunks({name: tensor for name, tensor in tensors.items() if is_divided(tensor)}, meet):
            pass


def _tensors_by_file(moco: MoCo, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    return {MODEL: moco.state_dict(), OPTIMIZER: optimizer_tensors(moco, optimizer)}


def check_checkpoint(folder: Path) -> Checkpoint:
    """Read all of a checkpoint, in bounded memory, and hold it against itself. Raises DamagedError with the reason.

    Small files first, then what the large ones claim to hold, then their bytes: nothing is read for its size alone.
    """
    manifest = read_manifest(folder, FILES)
    content = {name: read_checked(folder, name, manifest, limit) for name, limit in _LIMITS.items()}
    try:
        recipe = load_recipe(folder / RECIPE)
        state = State.model_validate(strict_json(content[STATE], STATE))
        _check_state(recipe, state)
        _check_layouts(folder, recipe, state)
    except ValidationError as error:
        raise DamagedError(f"{STATE}: {explain(error, State)}") from None
    except (OSError, ValueError) as error:
        raise DamagedError(str(error)) from None
    check_hashes(folder, manifest, (MODEL, OPTIMIZER, RANDOM))
    return Checkpoint(folder, recipe, state)


_LIMITS = {STATE: _MAX_STATE_BYTES, RECIPE: MAX_RECIPE_BYTES}


def load_checkpoint(checkpoint: Checkpoint, moco: MoCo, optimizer: torch.optim.Optimizer) -> Tensor:
    """Restore networks and optimizer in place; the random states of all processes. Raises UserError."""
    if misfit := _difference(layout_of(moco.state_dict()), read_layout(checkpoint.folder / MODEL)):
        raise UserError(f"{checkpoint.folder} does not fit this recipe: {misfit}; a new --output-dir starts anew")
    targets = moco.state_dict()
    with torch.no_grad():
        for name, tensor in read_tensors(checkpoint.folder / MODEL):
            local(targets[name]).copy_(part_of(tensor, targets[name]))
        restore_optimizer(moco, optimizer, read_tensors(checkpoint.folder / OPTIMIZER))
    return next(tensor for _, tensor in read_tensors(checkpoint.folder / RANDOM)).clone()


def load_encoder_from(checkpoint: Checkpoint) -> nn.Module:
    """The trained encoder, query side."""
    encoder = build_encoder(checkpoint.recipe.encoder)
    targets, prefix = encoder.state_dict(), "encoder."
    with torch.no_grad():
        for name, tensor in read_tensors(checkpoint.folder / MODEL, prefix):
            targets[name.removeprefix(prefix)].copy_(tensor)
    return encoder


def _check_state(recipe: Recipe, state: State) -> None:
    last = state.tile_count // recipe.batch.global_batch_size * recipe.schedule.epochs
    if state.step > last:
        raise ValueError(f"{STATE}: step={state.step} is past the run's last, {last}")


def _check_layouts(folder: Path, recipe: Recipe, state: State) -> None:
    """Raises ValueError where a file's tensors are not those of the recipe's networks and optimizer."""
    for name, layout in zip((MODEL, OPTIMIZER), _layouts(recipe.model_dump_json(exclude={"planned"})), strict=True):
        found = read_layout(folder / name)
        # an optimizer whose every step was skipped remembers nothing
        empty = name == OPTIMIZER and not found and (state.scaler is not None or state.step == 0)
        if not empty and (misfit := _difference(layout, found)):
            raise ValueError(f"{name}: {misfit}")
        if layout_bytes(found) > _MAX_TENSOR_BYTES:
            raise ValueError(f"{name} has more than {_MAX_TENSOR_BYTES} bytes")
    random = read_layout(folder / RANDOM)
    dtype, shape = random.get(_RANDOM, (None, ()))
    if len(random) != 1 or dtype != torch.uint8 or len(shape) != 2 or shape[0] != state.processes:
        raise ValueError(f"{RANDOM} does not hold the random states of {state.processes} processes")
    if layout_bytes(random) > _MAX_RANDOM_BYTES:
        raise ValueError(f"{RANDOM} has more than {_MAX_RANDOM_BYTES} bytes")


@lru_cache(maxsize=2)
def _layouts(recipe: str) -> tuple[Layout, Layout]:
    """Of the networks' and the optimizer's tensors, for a recipe as JSON."""
    built = Recipe.model_validate_json(recipe)
    with torch.device("meta"):
        moco = build_moco(built)
    return layout_of(moco.state_dict()), optimizer_layout(built.optimizer.name, moco)


def _difference(expected: Layout, found: Layout) -> str:
    """The first tensor that is missing, too many, or other than expected; nothing where all is well."""
    if missing := sorted(set(expected) - set(found)):
        return f"tensor {missing[0]} is missing"
    if more := sorted(set(found) - set(expected)):
        return f"tensor {more[0][:80]!r} is none of the networks'"
    for name, (dtype, shape) in expected.items():
        if found[name] != (dtype, shape):
            was = found[name]
            return f"tensor {name} is {_words(was[0])} {list(was[1])} in place of {_words(dtype)} {list(shape)}"
    return ""


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
