"""Read and write checkpoints: tensors as safetensors, the rest as JSON and YAML; no pickle.

RUN/checkpoints/step_00000200/{model,optimizer,random}.safetensors, state.json, recipe.yaml, manifest.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from moco_accel.checkpoints.manifest import DamagedCheckpointError, read_manifest, verify_checksums, write_files
from moco_accel.checkpoints.optimizer_state import optimizer_layout, optimizer_tensors, restore_optimizer
from moco_accel.checkpoints.tensor_files import Layout, layout_of, read_layout, read_tensors, safetensors_chunks
from moco_accel.common.atomic_files import fsync, parse_strict_json, read_regular_file
from moco_accel.common.errors import UserError
from moco_accel.networks.encoders import build_encoder
from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.networks.sharding import is_sharded, local_rows, local_tensor
from moco_accel.processes.control_group import PeerFailed
from moco_accel.recipe.data_sections import Section
from moco_accel.recipe.load import explain_validation_error, load_recipe, recipe_yaml
from moco_accel.recipe.schema import Recipe
from moco_accel.recipe.text import MAX_RECIPE_BYTES

MODEL, OPTIMIZER, RANDOM = (f"{name}.safetensors" for name in ("model", "optimizer", "random"))
STATE, RECIPE = "state.json", "recipe.yaml"
FILES = (MODEL, OPTIMIZER, RANDOM, STATE, RECIPE)
_RANDOM_TENSOR = "states"
# larger files would only keep a reader busy
_MAX_BYTES = {STATE: 1 << 16, RECIPE: MAX_RECIPE_BYTES, MODEL: 1 << 36, OPTIMIZER: 1 << 36, RANDOM: 1 << 28}


class ScalerState(Section):
    """The state of a gradient scaler that changes during a run."""

    scale: float = Field(gt=0, allow_inf_nan=False)
    growth_tracker: int = Field(ge=0)


class TrainerState(Section):
    """The content of state.json: everything but tensors and recipe.

    Attributes:
        step: Optimizer steps done; the position in data and schedules.
        tile_count: Tiles of the source, on which their order depends.
        reading: Checksum of the source's read pattern, on which the order of tiles may depend.
        tiles_digest: Checksum of the source's content (`Tiles.digest`); empty in checkpoints of earlier versions.
        micro_batch_asked: Micro-batch size that the user asked for; recipe.yaml may have a smaller one.
        skipped_steps: Steps that the gradient scaler skipped.
        scaler: None without fp16.
    """

    format: Literal[1] = 1
    step: int = Field(ge=0)
    tile_count: int = Field(ge=1)
    reading: str = Field(max_length=64)
    tiles_digest: str = Field("", max_length=64)
    processes: int = Field(ge=1)
    micro_batch_asked: int = Field(ge=1)
    skipped_steps: int = Field(0, ge=0)
    scaler: ScalerState | None = None
    versions: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    recipe: Recipe
    state: TrainerState


def write_checkpoint(
    final: Path,
    recipe: Recipe,
    state: TrainerState,
    moco: MoCo,
    optimizer: torch.optim.Optimizer,
    random_states: Tensor,
    exchange_status: Callable[[], object] | None = None,
) -> None:
    """Write a checkpoint under another name, sync it, rename it to `final`, and read it back.

    Args:
        final: The checkpoint's folder. A damaged checkpoint in its place is moved away.
        random_states: uint8 [ranks, bytes].
        exchange_status: Called before each collective. Needed if tensors are sharded; the other ranks then run
            `send_shards`.

    Raises:
        OSError: If the disk is full or not writable.
        DamagedCheckpointError: If the files read back differently.
    """
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = _tensors_by_file(moco, optimizer) | {RANDOM: {_RANDOM_TENSOR: random_states}}
    contents: dict[str, Iterable[bytes | memoryview]] = {
        **{name: safetensors_chunks(tensors, exchange_status) for name, tensors in files.items()},
        STATE: [json.dumps(state.model_dump()).encode()],
        RECIPE: [recipe_yaml(recipe)],
    }
    try:
        write_files(partial, contents)
        if final.exists():
            final.replace(final.with_suffix(".removed"))
        partial.rename(final)
    except (OSError, PeerFailed):
        shutil.rmtree(partial, ignore_errors=True)  # leave room for what the user may still want to save
        raise
    fsync(final.parent)
    verify_checksums(final, read_manifest(final, FILES), FILES)


def send_shards(moco: MoCo, optimizer: torch.optim.Optimizer, exchange_status: Callable[[], object]) -> None:
    """Send the shards of this rank while the first rank runs `write_checkpoint`."""
    for tensors in _tensors_by_file(moco, optimizer).values():
        sharded = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
        for _ in safetensors_chunks(sharded, exchange_status):
            pass


def _tensors_by_file(moco: MoCo, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    return {MODEL: moco.state_dict(), OPTIMIZER: optimizer_tensors(moco, optimizer)}


def verify_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint in bounded memory.

    Sizes come first, then small files, the layouts of the large ones, and their content: a hostile file is refused
    early.

    Raises:
        DamagedCheckpointError: If a file is missing, unexpected, damaged or inconsistent with the recipe.
    """
    manifest = read_manifest(folder, FILES)
    for name, limit in _MAX_BYTES.items():
        if manifest[name][1] > limit:
            raise DamagedCheckpointError(f"{name} has more than {limit} bytes")
    verify_checksums(folder, manifest, (STATE, RECIPE))
    try:
        recipe = load_recipe(folder / RECIPE)
        content = read_regular_file(folder / STATE, _MAX_BYTES[STATE])
        state = TrainerState.model_validate(parse_strict_json(content, STATE))
        last = state.tile_count // recipe.batch.global_batch_size * recipe.schedule.epochs
        if state.step > last:
            raise ValueError(f"{STATE}: step={state.step} is past the run's last step, {last}")
        _check_layouts(folder, recipe, state)
    except ValidationError as error:
        raise DamagedCheckpointError(f"{STATE}: {explain_validation_error(error, TrainerState)}") from None
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(str(error)) from None
    verify_checksums(folder, manifest, (MODEL, OPTIMIZER, RANDOM))
    return Checkpoint(folder, recipe, state)


def load_checkpoint(checkpoint: Checkpoint, moco: MoCo, optimizer: torch.optim.Optimizer) -> Tensor:
    """Restore networks and optimizer in place; return the random states of all ranks, uint8 [ranks, bytes].

    Raises:
        UserError: If the networks differ from the checkpoint's.
    """
    folder, targets = checkpoint.folder, moco.state_dict()
    if difference := _layout_difference(layout_of(targets), read_layout(folder / MODEL)):
        raise UserError(f"{folder} does not fit this recipe: {difference}; a new --output-dir starts a new run")
    with torch.no_grad():
        for name, tensor in read_tensors(folder / MODEL):
            local_tensor(targets[name]).copy_(local_rows(tensor, targets[name]))
        restore_optimizer(moco, optimizer, read_tensors(folder / OPTIMIZER))
    return next(tensor for _, tensor in read_tensors(folder / RANDOM)).clone()


def load_trained_encoder(checkpoint: Checkpoint) -> nn.Module:
    """Return the trained encoder (not the momentum encoder)."""
    encoder = build_encoder(checkpoint.recipe.encoder)
    targets, prefix = encoder.state_dict(), "encoder."
    with torch.no_grad():
        for name, tensor in read_tensors(checkpoint.folder / MODEL, prefix):
            targets[name.removeprefix(prefix)].copy_(tensor)
    return encoder


def _check_layouts(folder: Path, recipe: Recipe, state: TrainerState) -> None:
    """Raise ValueError if a file's tensors are not those of the recipe's networks and optimizer."""
    for name, layout in zip((MODEL, OPTIMIZER), _layouts(recipe.model_dump_json(exclude={"planned"})), strict=True):
        found = read_layout(folder / name)
        # an optimizer has no state before its first step, nor if the scaler skipped every step
        may_be_empty = name == OPTIMIZER and (state.scaler is not None or state.step == 0)
        if (found or not may_be_empty) and (difference := _layout_difference(layout, found)):
            raise ValueError(f"{name}: {difference}")
    random = read_layout(folder / RANDOM)
    dtype, shape = random.get(_RANDOM_TENSOR, (None, ()))
    if len(random) != 1 or dtype != torch.uint8 or len(shape) != 2 or shape[0] != state.processes:
        raise ValueError(f"{RANDOM} does not hold the random states of {state.processes} processes")


@lru_cache(maxsize=2)
def _layouts(recipe_json: str) -> tuple[Layout, Layout]:
    recipe = Recipe.model_validate_json(recipe_json)
    with torch.device("meta"):
        moco = build_moco(recipe)
    return layout_of(moco.state_dict()), optimizer_layout(recipe.optimizer.name, moco)


def _layout_difference(expected: Layout, found: Layout) -> str:
    """Describe the first tensor that is missing, unexpected or different; empty if there is none."""
    if missing := sorted(set(expected) - set(found)):
        return f"tensor {missing[0]} is missing"
    if unexpected := sorted(set(found) - set(expected)):
        return f"tensor {unexpected[0][:80]!r} is unexpected"
    for name in expected:
        if found[name] != expected[name]:
            what, instead = (
                f"{str(dtype).removeprefix('torch.')} {list(shape)}" for dtype, shape in (found[name], expected[name])
            )
            return f"tensor {name} is {what} in place of {instead}"
    return ""
