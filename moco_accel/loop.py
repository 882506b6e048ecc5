"""The training loop: data, step, schedule, log, checkpoint; reads as a straight script."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from moco_accel.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from moco_accel.console import console
from moco_accel.damage import DamageLog
from moco_accel.data import open_training_tiles, step_views
from moco_accel.moco import MoCo, build_moco
from moco_accel.monitor import Monitor
from moco_accel.optim import build_optimizer, lr_at, momentum_coefficient_at, set_lr
from moco_accel.order import steps_per_epoch
from moco_accel.recipe import Recipe, load_recipe, save_recipe
from moco_accel.recipe_text import RecipeError, set_word
from moco_accel.resolve import inherit, resolve
from moco_accel.step import build_accelerator, prepare, train_step

# what a resumed run may change without changing what it computes
_FREE_ON_RESUME = {"hardware", "memory", "planned", "evaluation"}
_FREE_FIELDS_ON_RESUME = {
    ("batch", "micro_batch_size"),
    ("batch", "accumulation_steps"),
    ("data", "num_workers"),
    ("data", "max_damaged_share"),
    ("run", "log_every_steps"),
    ("run", "checkpoint_every_steps"),
    ("run", "keep_checkpoints"),
}


def run_training(recipe: Recipe, run: Path, resume: bool) -> None:
    """Train, or go on training, in the folder `run`. Raises RecipeError for what the user can mend."""
    check_machine(recipe)
    if resume:
        recipe = inherit(recipe, load_recipe(latest_checkpoint(run) / "recipe.yaml"))
    check_run_folder(recipe, run, resume)
    tiles = open_training_tiles(recipe)
    if not resume:
        recipe = resolve(recipe, tiles, say=_say)
    steps_an_epoch = steps_per_epoch(recipe, len(tiles))
    total_steps = steps_an_epoch * recipe.schedule.epochs

    damage = DamageLog(recipe, len(tiles), run, resumed=resume, first=_rank() == 0)
    accelerator = build_accelerator(recipe, cpu=not torch.cuda.is_available())
    torch.manual_seed(recipe.run.seed)
    moco = build_moco(recipe)
    model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
    first_step = restore(run, accelerator, moco, optimizer, len(tiles)) if resume else 0
    if accelerator.is_main_process:
        save_recipe(recipe, run / "recipe.yaml", comment="resolved: every field of this run")

    views = step_views(tiles, recipe, accelerator.device, accelerator.process_index, first_step, damage)
    with Monitor(recipe, run, len(tiles), first_step, total_steps, accelerator, damage) as monitor:
        for step in range(first_step, total_steps):
            waited_from = time.perf_counter()
            view_pair = next(views)
            waited = time.perf_counter() - waited_from
            stop_together(accelerator, damage)
            assert view_pair is not None
            epoch = step / steps_an_epoch
            lr, momentum_coefficient = lr_at(recipe, epoch), momentum_coefficient_at(recipe, epoch)
            set_lr(optimizer, lr)
            result = train_step(accelerator, model, optimizer, view_pair, recipe, momentum_coefficient)
            del view_pair  # a single micro-batch's pixels would wait beside the next one's
            stop_if_not_finite(result.loss, "the loss", step, run)
            monitor.after_step(step, epoch, lr, momentum_coefficient, result, waited)
            last = step + 1 == total_steps
            if (last or (step + 1) % recipe.run.checkpoint_every_steps == 0) and accelerator.is_main_process:
                stop_if_not_finite(total(moco), "the sum of all parameters", step, run)
                save_checkpoint(run, recipe, step + 1, moco, optimizer, scaler_state(accelerator), len(tiles))
    accelerator.end_training()


def _rank() -> int:
    """This process's, before there is a process group to ask."""
    return int(os.environ.get("RANK", "0"))


def _say(line: str) -> None:
    if _rank() == 0:
        console.print(line, soft_wrap=True)


def check_machine(recipe: Recipe) -> None:
    """Hold the recipe's hardware against this machine and this launch."""
    if not torch.cuda.is_available():
        if recipe.hardware.vram_gib is not None:
            raise RecipeError(
                f"hardware.vram_gib={recipe.hardware.vram_gib:g} wants a GPU and torch sees none here; "
                "--recipe recipes/cpu_demo.yaml runs on a CPU, and --set hardware.vram_gib=null forces this one to"
            )
        if recipe.memory.mixed_precision == "fp16":
            raise RecipeError("memory.mixed_precision='fp16' needs a GPU; memory.mixed_precision=bf16 works on a CPU")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    devices, per_device = recipe.hardware.num_devices, recipe.batch.global_batch_size // processes
    if processes != devices:
        changes = f"--set hardware.num_devices={processes} --set batch.accumulation_steps=1"
        raise RecipeError(
            f"hardware.num_devices={devices} but {processes} processes were launched; launch with "
            f"--num_processes {devices}, or: {changes} --set batch.micro_batch_size={per_device}"
        )


def check_run_folder(recipe: Recipe, run: Path, resume: bool) -> None:
    """A new run starts in a folder of its own; a resumed one goes on with the same science."""
    if not resume:
        if (run / "latest").exists():
            raise RecipeError(f"--output-dir={run} already holds a run; --resume goes on with it, or name a new folder")
        return
    before = load_recipe(latest_checkpoint(run) / "recipe.yaml").model_dump()
    for section, fields in recipe.model_dump().items():
        if section in _FREE_ON_RESUME:
            continue
        for field, value in fields.items():
            if before[section][field] != value and (section, field) not in _FREE_FIELDS_ON_RESUME:
                raise RecipeError(
                    f"{section}.{field}={value!r} differs from the run's {before[section][field]!r} and would change "
                    f"its result; --set {set_word(f'{section}.{field}', before[section][field])} goes on with it"
                )


def restore(run: Path, accelerator: Accelerator, moco: MoCo, optimizer: torch.optim.Optimizer, tile_count: int) -> int:
    """Load the latest checkpoint; returns how many steps are done. Raises RecipeError for another set of tiles."""
    state = load_checkpoint(latest_checkpoint(run), moco, optimizer)
    if state["tile_count"] != tile_count:
        raise RecipeError(
            f"data.source holds {tile_count} tiles, and the run began with {state['tile_count']}: their order would be "
            "another one; the same tiles work, or a new --output-dir"
        )
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    return int(state["step"])


def stop_together(accelerator: Accelerator, damage: DamageLog) -> None:
    """All processes end where one has met too many damaged tiles; alone, it would leave the others waiting for it."""
    met = torch.tensor(float(damage.too_many), device=accelerator.device)
    if accelerator.reduce(met, "sum") > 0:
        raise RecipeError(damage.explain())


def scaler_state(accelerator: Accelerator) -> dict[str, float]:
    return dict(accelerator.scaler.state_dict()) if accelerator.scaler is not None else {}


def total(moco: MoCo) -> Tensor:
    """Of all parameters, in float64, in which finite ones cannot overflow."""
    return torch.stack([p.detach().sum(dtype=torch.float64) for p in moco.parameters()]).sum()


def stop_if_not_finite(value: Tensor, what: str, step: int, run: Path) -> None:
    """Raises RecipeError at the first NaN or infinity, before it reaches a checkpoint."""
    if torch.isfinite(value):
        return
    saved = (run / "latest").is_file()
    kept = f"{latest_checkpoint(run)} is the last good checkpoint" if saved else "no checkpoint yet"
    raise RecipeError(
        f"{what} is {value.item()} at step {step}; {kept}. What helps: a lower optimizer.base_lr, "
        "encoder.freeze_patch_projection=true, memory.mixed_precision=bf16 in place of fp16"
    )
