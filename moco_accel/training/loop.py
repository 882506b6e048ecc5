"""The training loop: load views, run a step, log it, save and evaluate."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import set_seed
from rich.markup import escape

from moco_accel.checkpoints.checkpoint import Checkpoint
from moco_accel.checkpoints.run_folder import STOPPED_FILE, checkpoint_folder, mark_best
from moco_accel.checkpoints.saver import CheckpointSaver
from moco_accel.common.errors import UserError
from moco_accel.networks.collectives import rank, world_size
from moco_accel.networks.moco import build_moco
from moco_accel.networks.sharding import local_tensor
from moco_accel.pretrained.load import load_weights
from moco_accel.processes.control_group import ControlGroup
from moco_accel.processes.signals import StoppedBySignal, StoppedWhileWaiting, StopRequest, kill_workers
from moco_accel.processes.watchdog import Watchdog
from moco_accel.recipe.load import save_recipe
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.damaged_tiles import DamageLog
from moco_accel.tiles.tiles import Tiles
from moco_accel.training import trackers
from moco_accel.training.device_memory import PlannedMemory
from moco_accel.training.loader import step_views
from moco_accel.training.metrics_logger import MetricsLogger
from moco_accel.training.online_evaluation import OnlineEvaluation
from moco_accel.training.oom_recovery import OutOfMemoryRecovery, describe_oom
from moco_accel.training.optimizers import build_optimizer, lr_at, momentum_coefficient_at, set_lr
from moco_accel.training.run_context import RunContext, log
from moco_accel.training.shared_memory import check_shared_memory
from moco_accel.training.step import Views, build_accelerator, prepare, train_step

_STOP, _TOO_MANY_DAMAGED, _SAVE = 1, 2, 4  # bits of a rank's request before a step


class Trainer:
    """Networks, optimizer and logs of a run. All ranks call its methods together.

    Args:
        recipe: The resolved recipe.
        total_steps: Optimizer steps of the whole run.
        checkpoint: Checkpoint to resume from; None starts a new run.
        allow_recipe_change: Allow tiles other than the checkpoint's.

    Raises:
        UserError: If the plan does not fit the GPU, or weights, checkpoint or trackers cannot be used.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        tiles: Tiles,
        total_steps: int,
        checkpoint: Checkpoint | None,
        allow_recipe_change: bool,
        control_group: ControlGroup,
        stop: StopRequest,
    ) -> None:
        self._recipe, self._run, self._control_group, self._stop = recipe, run, control_group, stop
        self._damage = DamageLog(recipe, len(tiles), run, resumed=checkpoint is not None, first=rank() == 0)
        tracking_folder = str(run / trackers.TRACKING_FOLDER)
        self._accelerator = accelerator = build_accelerator(recipe, not torch.cuda.is_available(), tracking_folder)
        asked = checkpoint.state.micro_batch_asked if checkpoint else recipe.batch.micro_batch_size
        planned = recipe.planned if recipe.batch.micro_batch_size == asked else None
        self._memory = PlannedMemory(recipe, planned, control_group, accelerator.device, log)
        self._memory.check()
        check_shared_memory(recipe, accelerator.device.type == "cuda")
        set_seed(recipe.run.seed)
        moco = build_moco(recipe)
        if checkpoint is None:
            load_weights(moco, recipe, log)
        self._moco, self._optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
        self._saver = CheckpointSaver(
            run,
            accelerator,
            control_group,
            moco,
            self._optimizer,
            asked,
            len(tiles),
            tiles.read_pattern,
            tiles.digest,
            stop,
        )
        first_step, skipped_steps = self._saver.restore(checkpoint, allow_recipe_change, log)
        _save_resolved_recipe(recipe, run, control_group)
        control_group.run_on_rank_zero(lambda: (run / STOPPED_FILE).unlink(missing_ok=True))
        on_halved = partial(_continue_in_smaller_micro_batches, run, control_group, self._memory)
        self._recovery = OutOfMemoryRecovery(recipe, moco, self._optimizer, control_group, on_halved)
        self._steps = range(first_step, total_steps)
        self._views = step_views(tiles, recipe, accelerator.device, rank(), first_step, self._damage)
        context = RunContext(recipe, run, tiles, self._steps, accelerator, control_group)
        self._logger = MetricsLogger(context, self._damage, self._memory, skipped_steps)
        self._evaluation = OnlineEvaluation(context)
        trackers.start_trackers(context)

    def train(self, watchdog: Watchdog) -> None:
        """Train to the last step, or until a signal asks to stop.

        Raises:
            UserError: If loss or parameters are not finite, too many tiles are damaged, or disk or memory run out.
        """
        recipe, accelerator, moco, optimizer = self._recipe, self._accelerator, self._moco, self._optimizer
        total_steps = self._steps.stop
        try:
            with self._logger:
                if self._steps.start:  # the run may have been killed between a save and its evaluation
                    self._evaluate_if_due(self._steps.start)
                watchdog.begin_steps()
                for step in self._steps:
                    waited_from = time.perf_counter()
                    views = self._next_views()
                    waited = time.perf_counter() - waited_from
                    self._handle_requests(step)
                    assert views is not None
                    epoch = step / (total_steps // recipe.schedule.epochs)
                    lr, momentum_coefficient = lr_at(recipe, epoch), momentum_coefficient_at(recipe, epoch)
                    set_lr(optimizer, lr)
                    result = train_step(
                        accelerator, moco, optimizer, views, recipe, momentum_coefficient, self._recovery
                    )
                    del views  # frees a single micro-batch's pixels before those of the next step are made
                    self._check_finite(result.loss, "the loss", step)
                    self._logger.after_step(step, epoch, lr, momentum_coefficient, result, waited)
                    self._memory.after_step()
                    watchdog.record_step()
                    if step + 1 == total_steps or (step + 1) % recipe.run.checkpoint_every_steps == 0:
                        self._save(step + 1)
                    self._evaluate_if_due(step + 1)
        except StoppedBySignal:
            self._control_group.run_on_rank_zero((self._run / STOPPED_FILE).touch)
            _log_stopped(self._stop, self._saver.saved_step)
        finally:
            self._views.close()
            kill_workers()
            trackers.finish_trackers(accelerator)

    def _next_views(self) -> Views | None:
        """Return the views of the next step; None if too many tiles are damaged, or a signal ended the wait."""
        try:
            return next(self._views)
        except StoppedWhileWaiting:
            return None

    def _handle_requests(self, step: int) -> None:
        """Combine the requests of all ranks before a step, so that all ranks do the same."""
        requests = self._control_group.or_over_ranks(
            _STOP * self._stop.is_requested
            | _TOO_MANY_DAMAGED * self._damage.too_many
            | _SAVE * self._saver.due(self._recipe)
        )
        if requests & _TOO_MANY_DAMAGED:
            raise UserError(self._damage.explain())
        if requests and step > self._saver.saved_step:
            self._save(step)
        if requests & _STOP:
            raise StoppedBySignal

    def _save(self, steps_done: int) -> None:
        # in float64, a sum of finite parameters cannot overflow
        sums = [local_tensor(p.detach()).sum(dtype=torch.float64) for p in self._moco.parameters()]
        self._check_finite(torch.stack(sums).sum(), "the sum of all parameters", steps_done - 1)
        self._saver.save(self._recovery.recipe, steps_done, self._logger.skipped_steps)

    def _evaluate_if_due(self, steps_done: int) -> None:
        if not (scope := self._evaluation.due(steps_done)):
            return
        figures = self._evaluation.evaluate(self._moco, scope, steps_done)
        self._logger.log_evaluation(figures)
        if self._evaluation.is_best(figures):
            if self._saver.saved_step != steps_done:
                self._save(steps_done)
            best = checkpoint_folder(self._run, steps_done)
            self._control_group.run_on_rank_zero(lambda: mark_best(self._run, best, figures["knn_top1"]))

    def _check_finite(self, value: torch.Tensor, what: str, step: int) -> None:
        """Raise UserError on all ranks if `value` is NaN or infinite on any, before a checkpoint contains it."""
        own = int(not torch.isfinite(value))
        if not self._control_group.max_over_ranks(own):
            return
        failing = [rank for rank, is_failing in enumerate(self._control_group.all_gather(own)) if is_failing]
        saved_step = self._saver.saved_step
        last = checkpoint_folder(self._run, saved_step)
        kept = f"{last} is the last good checkpoint" if saved_step else "no checkpoint yet"
        where = f" on rank {failing[0]}" if world_size() > 1 else ""
        raise UserError(
            f"{what} is {'not finite' if where else value.item()}{where} at step {step}; {kept}. Try: a lower "
            "optimizer.base_lr, encoder.freeze_patch_projection=true, memory.mixed_precision=bf16 instead of fp16"
        )


def _save_resolved_recipe(recipe: Recipe, run: Path, control_group: ControlGroup) -> None:
    comment = "resolved: every field of this run"
    control_group.run_on_rank_zero(lambda: save_recipe(recipe, run / "recipe.yaml", comment))


def _continue_in_smaller_micro_batches(
    run: Path, control_group: ControlGroup, memory: PlannedMemory, smaller: Recipe, oom_ranks: list[int]
) -> None:
    batch = smaller.batch
    log(
        f"[yellow]{describe_oom(oom_ranks)}: this step is retried in micro-batches of {batch.micro_batch_size} × "
        f"{batch.accumulation_steps}, which later steps use as well. Tiles, global batch {batch.global_batch_size}, "
        f"{smaller.negatives_per_query} negatives and lr stay the same[/]"
    )
    memory.discard_plan()
    _save_resolved_recipe(smaller, run, control_group)


def _log_stopped(stop: StopRequest, saved_step: int) -> None:
    command = stop.resume_command
    saved = f"saved after step {saved_step}" if saved_step else "before the first step was done"
    how = f"resume with:\n{command}" if command else "start it again in the same way, with --resume"
    log(f"stopped by {stop.reason or 'a signal to another process'}, {saved}; {escape(how)}")
