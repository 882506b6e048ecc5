"""When and how a run is saved, by the first process while all others wait for its word; and how it is taken up."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from moco_accel.checkpoints.checkpoint import Checkpoint, Scaler, State, load_checkpoint, send_parts, write_checkpoint
from moco_accel.checkpoints.manifest import DamagedError
from moco_accel.checkpoints.random_states import random_states, restore_random_states
from moco_accel.checkpoints.resume_rules import say_versions
from moco_accel.checkpoints.run_folder import checkpoint_folder, point_latest, remove_leftovers, remove_old, set_aside
from moco_accel.common.atomic_files import sync
from moco_accel.common.errors import UserError
from moco_accel.common.versions import library_versions
from moco_accel.networks.moco import MoCo
from moco_accel.processes.control_group import Agreement
from moco_accel.processes.phases import CHECKPOINT, enter, waiting
from moco_accel.processes.signals import StopRequest
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.base import Reading
from moco_accel.tiles.damage import DAMAGE_FILE

_LOGS = ("metrics.jsonl", DAMAGE_FILE)
_SECONDS = 60


class Saver:
    """Saves and restores one run. All processes call its methods together."""

    def __init__(
        self,
        run: Path,
        accelerator: Accelerator,
        agreement: Agreement,
        moco: MoCo,
        optimizer: torch.optim.Optimizer,
        micro_batch_asked: int,
        tile_count: int,
        reading: Reading,
        stop: StopRequest,
    ) -> None:
        self._run, self._accelerator, self._agreement = run, accelerator, agreement
        self._moco, self._optimizer, self._micro_batch_asked = moco, optimizer, micro_batch_asked
        self._tile_count, self._reading, self._stop = tile_count, _checksum(reading), stop
        self._saved_at, self.saved_step = time.monotonic(), 0

    @property
    def last(self) -> Path | None:
        """The newest whole checkpoint."""
        return checkpoint_folder(self._run, self.saved_step) if self.saved_step else None

    def restore(self, checkpoint: Checkpoint | None, allow_change: bool, say: Callable[[str], None]) -> tuple[int, int]:
        """Take up the run where `checkpoint` left it: steps done, steps skipped. Raises UserError for other tiles."""
        found = self._agreement.all(checkpoint.state.step if checkpoint else 0)
        if min(found) != max(found):
            raise UserError(f"processes found checkpoints of steps {found}; {self._run} must be one folder for all")
        if checkpoint is None:
            return 0, 0
        state = checkpoint.state
        if (state.tile_count, state.reading) != (self._tile_count, self._reading):
            self._refuse_other_tiles(state, allow_change, say)
        states = load_checkpoint(checkpoint, self._moco, self._optimizer)
        if self._accelerator.scaler is not None and state.scaler is not None:
            scaler = self._accelerator.scaler
            # in place of what the class keeps beside it, which its constructor gave
            saved = {"scale": state.scaler.scale, "_growth_tracker": state.scaler.growth_tracker}
            scaler.load_state_dict(scaler.state_dict() | saved)
        say_versions(state.versions, say)
        self._restore_random_states(states, say)
        self._agreement.by_first(lambda: self._tidy(checkpoint.folder))
        self._note_saved(state.step)
        return state.step, state.skipped_steps

    def due(self, recipe: Recipe) -> bool:
        """Whether time, by the first process's clock, asks for a checkpoint."""
        minutes = recipe.run.checkpoint_every_minutes
        passed = time.monotonic() - self._saved_at
        return self._accelerator.is_main_process and minutes is not None and passed >= minutes * _SECONDS

    def save(self, recipe: Recipe, step: int, skipped_steps: int) -> None:
        """Checkpoint the run after `step` steps. Raises UserError on all processes where the first cannot."""
        enter(CHECKPOINT)
        with waiting():
            states = self._accelerator.gather(random_states()[None].to(self._accelerator.device)).cpu()
        state = State(
            step=step,
            tile_count=self._tile_count,
            reading=self._reading,
            processes=self._accelerator.num_processes,
            micro_batch_asked=self._micro_batch_asked,
            skipped_steps=skipped_steps,
            scaler=self._scaler(),
            versions=library_versions(),
        )
        others = partial(send_parts, self._moco, self._optimizer, self._agreement.go_on)
        self._agreement.by_first(
            lambda: self._write(recipe, step, state, states), others if self._moco.shards else None
        )
        self._note_saved(step)

    def _tidy(self, newest: Path) -> None:
        """What a killed process has not come to: a run that was killed in its last save has no other to do it."""
        point_latest(self._run, newest)
        set_aside(self._run, newest)
        remove_leftovers(self._run)

    def _note_saved(self, step: int) -> None:
        self.saved_step, self._saved_at = step, time.monotonic()
        self._stop.loss = f"what came after step {step} is lost"

    def _write(self, recipe: Recipe, step: int, state: State, states: torch.Tensor) -> None:
        final = checkpoint_folder(self._run, step)
        try:
            for name in _LOGS:  # no row of a step that is saved may be lost
                if (self._run / name).is_file():
                    sync(self._run / name)
            remove_leftovers(self._run)
            write_checkpoint(final, recipe, state, self._moco, self._optimizer, states, self._agreement.go_on)
            point_latest(self._run, final)
            remove_old(self._run, recipe.run.keep_checkpoints)
        except DamagedError as reason:
            raise UserError(
                f"{final} was written, and reads back otherwise: {reason}. The disk is not to be trusted; "
                "--output-dir on another one works"
            ) from None
        except OSError as error:
            kept = f"step {self.saved_step} is saved" if self.saved_step else "nothing is saved yet"
            raise UserError(
                f"{final} cannot be written ({error.strerror or error}); {kept}. Room on that disk, then --resume"
            ) from None

    def _scaler(self) -> Scaler | None:
        if self._accelerator.scaler is None:
            return None
        found = self._accelerator.scaler.state_dict()
        return Scaler(scale=float(found["scale"]), growth_tracker=int(found["_growth_tracker"]))

    def _refuse_other_tiles(self, state: State, allow_change: bool, say: Callable[[str], None]) -> None:
        what = (
            f"holds {self._tile_count} tiles, and the run began with {state.tile_count}"
            if state.tile_count != self._tile_count
            else "keeps its tiles in other shards than when the run began"
        )
        if not allow_change:
            raise UserError(
                f"data.source {what}: their order would be another one; the same tiles work, a new --output-dir, or "
                "--allow-recipe-change"
            )
        say(f"[yellow]--allow-recipe-change: data.source {what}; from here on their order is another one[/]")

    def _restore_random_states(self, states: torch.Tensor, say: Callable[[str], None]) -> None:
        if len(states) != self._accelerator.num_processes:
            say(
                f"random states are those of {len(states)} processes and not restored on "
                f"{self._accelerator.num_processes}; nothing in training draws from them"
            )
            return
        try:
            restore_random_states(states[self._accelerator.process_index])
        except ValueError as error:
            say(f"random states are not restored ({error}); nothing in training draws from them")


def _checksum(reading: Reading) -> str:
    return hashlib.sha256(f"{list(reading.units)} {reading.window}".encode()).hexdigest()[:16]
