"""Checkpoints: tensors as safetensors, the rest as JSON; no pickle. Written aside, synced, renamed whole.

RUN/checkpoints/step_00000200/{model.safetensors, optimizer.safetensors, state.json, recipe.yaml}
RUN/latest                      the name of the newest whole one
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moco_accel.atomic_files import write_atomically
from moco_accel.encoders import build_encoder
from moco_accel.moco import MoCo
from moco_accel.recipe import Recipe, load_recipe, save_recipe
from moco_accel.recipe_text import RecipeError


def save_checkpoint(
    run: Path,
    recipe: Recipe,
    step: int,
    moco: MoCo,
    optimizer: torch.optim.Optimizer,
    scaler: dict[str, Any],
    tile_count: int,
) -> Path:
    """Write a checkpoint after `step` optimizer steps, point `latest` at it, remove all but the newest few."""
    final = run / "checkpoints" / f"step_{step:08d}"
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in moco.state_dict().items()}, partial / "model.safetensors")
    tensors: dict[str, Tensor] = {}
    optimizer_tree = _take_tensors(optimizer.state_dict(), "", tensors)
    save_file(tensors, partial / "optimizer.safetensors")
    state = {"step": step, "optimizer": optimizer_tree, "scaler": scaler, "torch": torch.__version__}
    state["tile_count"] = tile_count  # of the whole source: the order of tiles hangs on it
    (partial / "state.json").write_text(json.dumps(state))
    save_recipe(recipe, partial / "recipe.yaml")
    for file in partial.iterdir():
        _sync(file)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(final.parent)
    write_atomically(run / "latest", final.name + "\n")
    for old in sorted(final.parent.glob("step_????????"))[: -recipe.run.keep_checkpoints]:
        shutil.rmtree(old)
    return final


def load_checkpoint(checkpoint: Path, moco: MoCo, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore networks and optimizer in place; returns step (number of them), scaler (its state), tile_count."""
    state = json.loads((checkpoint / "state.json").read_text())
    moco.load_state_dict(load_file(checkpoint / "model.safetensors"))
    tensors = load_file(checkpoint / "optimizer.safetensors")
    optimizer.load_state_dict(_put_tensors(state["optimizer"], tensors))
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:  # fused kernels want the same strides
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return {name: state[name] for name in ("step", "scaler", "tile_count")}


def latest_checkpoint(run: Path) -> Path:
    """The newest whole checkpoint of a run's folder. Raises RecipeError when there is none."""
    pointer = run / "latest"
    if not pointer.is_file():
        raise RecipeError(f"{run} holds no checkpoint ({pointer} is absent); train one with --output-dir {run}")
    return run / "checkpoints" / pointer.read_text().strip()


def load_encoder(path: Path) -> tuple[Recipe, nn.Module, Path]:
    """Recipe, trained encoder (query side) and run folder of a run or of one of its checkpoints."""
    checkpoint = path if (path / "model.safetensors").is_file() else latest_checkpoint(path)
    recipe = load_recipe(checkpoint / "recipe.yaml")
    encoder = build_encoder(recipe.encoder)
    prefix = "encoder."
    with safe_open(checkpoint / "model.safetensors", framework="pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a mapping
        encoder.load_state_dict({name.removeprefix(prefix): tensors.get_tensor(name) for name in names})
    return recipe, encoder, checkpoint.parent.parent


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_tensors(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`tree` as JSON, its tensors moved to `tensors` by path. Mappings become pairs, for JSON has no integer keys."""
    if isinstance(tree, Tensor):
        # safetensors refuses shared storage, and strides such as channels_last's
        tensors[path] = tree.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": path}
    if isinstance(tree, dict):
        return {"pairs": [[key, _take_tensors(value, f"{path}.{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [_take_tensors(value, f"{path}.{index}", tensors) for index, value in enumerate(tree)]
    return tree


def _put_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if "tensor" in tree:
            return tensors[tree["tensor"]]
        return {key: _put_tensors(value, tensors) for key, value in tree["pairs"]}
    return [_put_tensors(value, tensors) for value in tree] if isinstance(tree, list) else tree
