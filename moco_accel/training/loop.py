"""The training loop: data, step, schedule, log, checkpoint; reads as a straight script."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.markup import escape
from torch import Tensor

from moco_accel.checkpoints.checkpoint import Checkpoint
from moco_accel.checkpoints.folder_lock import FolderLock
from moco_accel.checkpoints.random_states import seed_all
from moco_accel.checkpoints.resume_rules import continued
from moco_accel.checkpoints.run_folder import STOPPED, checkpoint_folder, mark_best, newest_whole, refuse_used_folder
from moco_accel.checkpoints.saver import Saver
from moco_accel.common.console import console
from moco_accel.common.errors import UserError
from moco_accel.networks.collectives import rank, world_size
from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.networks.sharding import local
from moco_accel.pretrained.load import load_weights
from moco_accel.processes.control_group import Agreement, meet_through
from moco_accel.processes.signals import StoppedBySignal, StopRequest, end_workers
from moco_accel.processes.startup import meet_others
from moco_accel.processes.watchdog import Watch
from moco_accel.recipe.launch_command import Asked
from moco_accel.recipe.load import save_recipe
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.damage import DamageLog
from moco_accel.tiles.order import steps_per_epoch
from moco_accel.tiles.resolve import resolve
from moco_accel.training import trackers
from moco_accel.training.card_memory import PlannedMemory
from moco_accel.training.loader import open_training_tiles, step_views
from moco_accel.training.monitor import Monitor
from moco_accel.training.online_evaluation import Examiner
from moco_accel.training.oom_recovery import Healer, in_words
from moco_accel.training.optimizers import build_optimizer, lr_at, momentum_coefficient_at, set_lr
from moco_accel.training.step import build_accelerator, prepare, train_step

_STOP, _TOO_MANY_DAMAGED, _SAVE = 1, 2, 4  # what a process may have to say before a step


def run_training(
    recipe: Recipe,
    run: Path,
    resume: bool,
    stop: StopRequest,
    allow_recipe_change: bool = False,
    asked: Asked | None = None,
) -> None:
    """Train, or go on training, in the folder `run`. Raises UserError for what the user can mend."""
    with stop.while_nothing_is_begun():
        processes, agreement = meet_others(recipe, asked or Asked(), _say_before)
        meet_through(agreement if recipe.heals else None)
        watch = Watch(agreement, processes.process_index, processes.num_processes, recipe.run.stall_seconds)
    with watch, FolderLock(run, agreement):
        _train(recipe, run, resume, stop, allow_recipe_change, agreement, watch)
    processes.destroy_process_group()


def _train(
    recipe: Recipe,
    run: Path,
    resume: bool,
    stop: StopRequest,
    allow_recipe_change: bool,
    agreement: Agreement,
    watch: Watch,
) -> None:
    micro_batch_asked, look_anew = recipe.batch.micro_batch_size, True
    found = find_checkpoint(run, resume)
    if found is not None:
        asked = found.state.micro_batch_asked
        recipe, look_anew = continued(recipe, found.recipe, asked, allow_recipe_change, _say)
    tiles = open_training_tiles(recipe)
    if look_anew:
        recipe = resolve(recipe, tiles, say=_say)
    steps_an_epoch = steps_per_epoch(recipe, len(tiles))
    total_steps = steps_an_epoch * recipe.schedule.epochs
    if found is not None and is_done(found, total_steps, len(tiles)) and (run / "summary.json").is_file():
        _say(f"{escape(str(run))} is done: {found.state.step} steps of {total_steps}; nothing is left to resume")
        return

    damage = DamageLog(recipe, len(tiles), run, resumed=found is not None, first=rank() == 0)
    accelerator = build_accelerator(recipe, not torch.cuda.is_available(), str(run / trackers.FOLDER))
    planned = recipe.planned if recipe.batch.micro_batch_size == micro_batch_asked else None
    memory = PlannedMemory(planned, recipe.encoder.name, agreement, accelerator.device, _say, recipe.heals)
    memory.check()
    seed_all(recipe.run.seed)
    moco = build_moco(recipe)
    if found is None:
        load_weights(moco, recipe, _say)
    model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
    saver = Saver(run, accelerator, agreement, moco, optimizer, micro_batch_asked, len(tiles), tiles.reading, stop)
    first_step, skipped_steps = saver.restore(found, allow_recipe_change, _say)

    def write_down(recipe: Recipe) -> None:
        comment = "resolved: every field of this run"
        agreement.by_first(lambda: save_recipe(recipe, run / "recipe.yaml", comment))

    def note_halved(smaller: Recipe, lacking: list[int]) -> None:
        say_halved(smaller, lacking)
        memory.forget()
        write_down(smaller)

    write_down(recipe)
    agreement.by_first(lambda: (run / STOPPED).unlink(missing_ok=True))
    healer = Healer(recipe, moco, optimizer, agreement, note_halved)

    views = step_views(tiles, recipe, accelerator.device, accelerator.process_index, first_step, damage)
    monitor = Monitor(
        recipe, run, len(tiles), first_step, total_steps, accelerator, agreement, damage, memory, skipped_steps
    )

    examiner = Examiner(recipe, run, tiles, accelerator, agreement, first_step, total_steps)
    trackers.start_trackers(accelerator, agreement, recipe, run, first_step)

    def save(steps_done: int) -> None:
        stop_if_not_finite(agreement, total(moco), "the sum of all parameters", steps_done - 1, saver.last)
        saver.save(healer.recipe, steps_done, monitor.skipped_steps)

    def examine(what: int, steps_done: int) -> None:
        figures = examiner.examine(moco, what, steps_done)
        monitor.examined(figures, figures["seconds"])
        if examiner.is_best(figures):
            if saver.saved_step != steps_done:
                save(steps_done)
            best = checkpoint_folder(run, steps_done)
            agreement.by_first(lambda: mark_best(run, best, figures["knn_top1"]))

    try:
        with monitor:
            if first_step and (what := examiner.due(first_step)):  # a kill came between a save and its evaluation
                examine(what, first_step)
            for step in range(first_step, total_steps):
                waited_from = time.perf_counter()
                view_pair = next(views)
                waited = time.perf_counter() - waited_from
                told = ask_all(agreement, stop, damage, saver.due(recipe))
                if told & _TOO_MANY_DAMAGED:
                    raise UserError(damage.explain())
                if told and step > saver.saved_step:
                    save(step)
                if told & _STOP:
                    raise StoppedBySignal
                assert view_pair is not None
                epoch = step / steps_an_epoch
                lr, momentum_coefficient = lr_at(recipe, epoch), momentum_coefficient_at(recipe, epoch)
                set_lr(optimizer, lr)
                result = train_step(accelerator, model, optimizer, view_pair, recipe, momentum_coefficient, healer)
                del view_pair  # a single micro-batch's pixels would wait beside the next one's
                stop_if_not_finite(agreement, result.loss, "the loss", step, saver.last)
                monitor.after_step(step, epoch, lr, momentum_coefficient, result, waited)
                memory.after_step()
                watch.step_done()
                if step + 1 == total_steps or (step + 1) % recipe.run.checkpoint_every_steps == 0:
                    save(step + 1)
                if what := examiner.due(step + 1):
                    examine(what, step + 1)
    except StoppedBySignal:
        agreement.by_first((run / STOPPED).touch)
        say_stopped(stop, saver.saved_step)
    finally:
        views.close()
        end_workers()
        trackers.finish_trackers(accelerator)


def _say_before(line: str) -> None:
    """Of the first process, while no other is known yet."""
    console.print(line, soft_wrap=True)


def _say(line: str) -> None:
    if rank() == 0:
        console.print(line, soft_wrap=True)


def find_checkpoint(run: Path, resume: bool) -> Checkpoint | None:
    """What a resumed run goes on from. A new run wants a folder of its own. Raises UserError."""
    if not resume:
        refuse_used_folder(run)
        return None
    found = newest_whole(run, _say)
    if found is None:  # a job that is always started with --resume has to begin some time
        _say(f"--resume: {escape(str(run))} holds no checkpoint yet; the run starts from the beginning")
    return found


def is_done(found: Checkpoint, total_steps: int, tile_count: int) -> bool:
    """Not with other tiles: steps mean something else there."""
    return found.state.step >= total_steps and found.state.tile_count == tile_count


def ask_all(agreement: Agreement, stop: StopRequest, damage: DamageLog, save_due: bool) -> int:
    """What any process has to say before a step, so that all do the same. One that acts alone leaves others waiting."""
    own = _STOP * stop.wanted | _TOO_MANY_DAMAGED * damage.too_many | _SAVE * save_due
    return agreement.any_of(own)


def say_halved(smaller: Recipe, lacking: list[int]) -> None:
    batch = smaller.batch
    _say(
        f"[yellow]{in_words(lacking)}: this step is done over, and all from here on, in micro-batches of "
        f"{batch.micro_batch_size} × {batch.accumulation_steps}. Tiles, global batch {batch.global_batch_size}, "
        f"{smaller.negatives_per_query} negatives and lr stay as they are[/]"
    )


def say_stopped(stop: StopRequest, saved_step: int) -> None:
    """How to go on."""
    command = stop.resume_command
    saved = f"saved after step {saved_step}" if saved_step else "before the first step was done"
    how = f"go on with:\n{command}" if command else "start it again as you did, with --resume"
    _say(f"stopped by {stop.reason or 'a signal to another process'}, {saved}; {escape(how)}")


def total(moco: MoCo) -> Tensor:
    """Of all parameters, in float64, in which finite ones cannot overflow."""
    return torch.stack([local(p.detach()).sum(dtype=torch.float64) for p in moco.parameters()]).sum()


def stop_if_not_finite(agreement: Agreement, value: Tensor, what: str, step: int, last: Path | None) -> None:
    """Raises UserError on all processes at the first NaN or infinity on any, before it reaches a checkpoint."""
    own = int(not torch.isfinite(value))
    if not agreement.worst(own):
        return
    failing = [rank for rank, word in enumerate(agreement.all(own)) if word]
    kept = f"{last} is the last good checkpoint" if last else "no checkpoint yet"
    where = f" on rank {failing[0]}" if world_size() > 1 else ""
    raise UserError(
        f"{what} is {'not finite' if where else value.item()}{where} at step {step}; {kept}. What helps: "
        "a lower optimizer.base_lr, encoder.freeze_patch_projection=true, memory.mixed_precision=bf16 in place of fp16"
    )
