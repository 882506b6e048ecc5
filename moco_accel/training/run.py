"""Start a run, or resume it: connect the ranks, resolve the recipe, open the tiles, train."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from moco_accel.checkpoints.checkpoint import Checkpoint
from moco_accel.checkpoints.resume_rules import resume_recipe
from moco_accel.checkpoints.run_folder import check_unused, lock_folder, newest_intact
from moco_accel.processes.control_group import use_control_group
from moco_accel.processes.signals import StopRequest
from moco_accel.processes.startup import start_processes
from moco_accel.processes.watchdog import Watchdog
from moco_accel.recipe.launch_command import LaunchOptions
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.fill_data_fields import fill_data_fields
from moco_accel.tiles.sampler import steps_per_epoch
from moco_accel.tiles.tiles import Tiles
from moco_accel.training.loader import open_training_tiles
from moco_accel.training.loop import Trainer
from moco_accel.training.run_context import log


def run_training(
    recipe: Recipe,
    run: Path,
    resume: bool,
    stop: StopRequest,
    allow_recipe_change: bool = False,
    options: LaunchOptions | None = None,
) -> None:
    """Train in the folder `run`, or resume the run in it.

    Args:
        resume: Resume from the newest intact checkpoint, if there is one.
        allow_recipe_change: Allow `resume` with a recipe that changes the result.
        options: Options of the command, which must be the same on all ranks.

    Raises:
        UserError: If launch, recipe, tiles, run folder, disk or memory prevent the run.
    """
    with stop.exit_on_request():
        processes, control_group = start_processes(recipe, options or LaunchOptions(), log)
        use_control_group(control_group if recipe.recovers_from_oom else None)
        watchdog = Watchdog(control_group, processes.process_index, processes.num_processes, recipe.run.stall_seconds)
    with watchdog, lock_folder(run, control_group):
        checkpoint = _find_checkpoint(run, resume)
        recipe, tiles = _resolve(recipe, checkpoint, allow_recipe_change)
        total_steps = steps_per_epoch(recipe, len(tiles)) * recipe.schedule.epochs
        if checkpoint is not None and _is_finished(checkpoint, run, total_steps, len(tiles)):
            log(
                f"{escape(str(run))} is done: {checkpoint.state.step} steps of {total_steps}; nothing is left to resume"
            )
        else:
            trainer = Trainer(recipe, run, tiles, total_steps, checkpoint, allow_recipe_change, control_group, stop)
            trainer.train(watchdog)
            del trainer  # frees its memory before the process group ends
    processes.destroy_process_group()


def _find_checkpoint(run: Path, resume: bool) -> Checkpoint | None:
    """Return the checkpoint to resume from; raise UserError if a new run's folder is in use."""
    if not resume:
        check_unused(run)
        return None
    checkpoint = newest_intact(run, log)
    if checkpoint is None:  # not an error: a job may always use --resume
        log(f"--resume: {escape(str(run))} holds no checkpoint yet; the run starts from the beginning")
    return checkpoint


def _resolve(recipe: Recipe, checkpoint: Checkpoint | None, allow_recipe_change: bool) -> tuple[Recipe, Tiles]:
    """Return the recipe with every field filled in, and its tiles."""
    fill_from_tiles = True
    if checkpoint is not None:
        recipe, fill_from_tiles = resume_recipe(recipe, checkpoint.recipe, checkpoint.state, allow_recipe_change, log)
    tiles = open_training_tiles(recipe)
    return (fill_data_fields(recipe, tiles, log) if fill_from_tiles else recipe), tiles


def _is_finished(checkpoint: Checkpoint, run: Path, total_steps: int, tile_count: int) -> bool:
    """Return True if the run has done all its steps; with another number of tiles, steps are not comparable."""
    is_last = checkpoint.state.step >= total_steps and checkpoint.state.tile_count == tile_count
    return is_last and (run / "summary.json").is_file()
