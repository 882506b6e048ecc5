"""Save a run and restore it. The first rank writes; the others wait, or send their shards."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from moco_accel.checkpoints import run_folder
from moco_accel.checkpoints.checkpoint import (
    Checkpoint,
    ScalerState,
    TrainerState,
    load_checkpoint,
    send_shards,
    write_checkpoint,
)
from moco_accel.checkpoints.manifest import DamagedCheckpointError
from moco_accel.checkpoints.resume_rules import report_version_changes
from moco_accel.common.atomic_files import fsync
from moco_accel.common.errors import UserError
from moco_accel.common.versions import library_versions
from moco_accel.networks.moco import MoCo
from moco_accel.processes.control_group import ControlGroup
from moco_accel.processes.phases import CHECKPOINT, enter_phase, waiting_for_peers
from moco_accel.processes.signals import StopRequest
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.base import ReadPattern
from moco_accel.tiles.damaged_tiles import DAMAGED_TILES_FILE

_LOGS = ("metrics.jsonl", DAMAGED_TILES_FILE)
_SECONDS_PER_MINUTE = 60
# saved, with torch's, in case a library draws from them; training does not, since every tile has its own seeds
_RANDOM_STATES = np.dtype([("python", "<u4", 625), ("numpy", "<u4", 624), ("others", "<f8", 5)])


@dataclass
class CheckpointSaver:
    """Saves and restores one run. All ranks call its methods together.

    Attributes:
        micro_batch_asked: Micro-batch size with which the run was started.
        saved_step: Step of the newest checkpoint; 0 if there is none.
    """

    run: Path
    accelerator: Accelerator
    control_group: ControlGroup
    moco: MoCo
    optimizer: torch.optim.Optimizer
    micro_batch_asked: int
    tile_count: int
    read_pattern: ReadPattern
    tiles_digest: str
    stop: StopRequest
    saved_step: int = field(default=0, init=False)
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    def restore(self, checkpoint: Checkpoint | None, allow_change: bool, log: Callable[[str], None]) -> tuple[int, int]:
        """Restore the run from `checkpoint`; return steps done and steps skipped. Without one, a run starts at step 0.

        Args:
            allow_change: Allow tiles other than the checkpoint's (`--allow-recipe-change`).

        Raises:
            UserError: If ranks found different checkpoints, or the tiles differ and `allow_change` is False.
        """
        found = self.control_group.all_gather(checkpoint.state.step if checkpoint else 0)
        if min(found) != max(found):
            raise UserError(f"processes found checkpoints of steps {found}; {self.run} must be one folder for all")
        if checkpoint is None:
            return 0, 0
        state = checkpoint.state
        if (state.tile_count, state.reading) != (self.tile_count, _checksum(self.read_pattern)):
            self._check_other_tiles(state, allow_change, log)
        elif state.tiles_digest not in ("", self.tiles_digest):
            log("[yellow]data.source holds as many tiles as when the run started, but other files or other contents[/]")
        states = load_checkpoint(checkpoint, self.moco, self.optimizer)
        if (scaler := self.accelerator.scaler) is not None and state.scaler is not None:
            # the scaler's other options come from its constructor
            saved = {"scale": state.scaler.scale, "_growth_tracker": state.scaler.growth_tracker}
            scaler.load_state_dict(scaler.state_dict() | saved)
        report_version_changes(state.versions, log)
        self._restore_random_states(states, log)
        self.control_group.run_on_rank_zero(lambda: run_folder.tidy_up(self.run, checkpoint.folder))
        self._note_saved(state.step)
        return state.step, state.skipped_steps

    def due(self, recipe: Recipe) -> bool:
        """Return True on the first rank if `run.checkpoint_every_minutes` have passed since the last checkpoint."""
        minutes = recipe.run.checkpoint_every_minutes
        passed = time.monotonic() - self._saved_at
        return self.accelerator.is_main_process and minutes is not None and passed >= minutes * _SECONDS_PER_MINUTE

    def save(self, recipe: Recipe, step: int, skipped_steps: int) -> None:
        """Write a checkpoint after `step` steps.

        Raises:
            UserError: If the first rank cannot write it; raised on all ranks.
        """
        enter_phase(CHECKPOINT)
        with waiting_for_peers():
            states = self.accelerator.gather(random_states()[None].to(self.accelerator.device)).cpu()
        state = TrainerState(
            step=step,
            tile_count=self.tile_count,
            reading=_checksum(self.read_pattern),
            tiles_digest=self.tiles_digest,
            processes=self.accelerator.num_processes,
            micro_batch_asked=self.micro_batch_asked,
            skipped_steps=skipped_steps,
            scaler=self._scaler_state(),
            versions=library_versions(),
        )
        send = partial(send_shards, self.moco, self.optimizer, self.control_group.raise_if_peer_failed)
        self.control_group.run_on_rank_zero(
            lambda: self._write(recipe, step, state, states), send if self.moco.sharding else None
        )
        self._note_saved(step)

    def _note_saved(self, step: int) -> None:
        self.saved_step, self._saved_at = step, time.monotonic()
        self.stop.unsaved_work = f"everything after step {step} is lost"

    def _write(self, recipe: Recipe, step: int, state: TrainerState, states: Tensor) -> None:
        final = run_folder.checkpoint_folder(self.run, step)
        exchange_status = self.control_group.raise_if_peer_failed
        try:
            for name in _LOGS:  # rows of saved steps must survive a power cut
                if (self.run / name).is_file():
                    fsync(self.run / name)
            run_folder.remove_leftovers(self.run)
            write_checkpoint(final, recipe, state, self.moco, self.optimizer, states, exchange_status)
            run_folder.update_latest(self.run, final)
            run_folder.remove_old_checkpoints(self.run, recipe.run.keep_checkpoints)
        except DamagedCheckpointError as reason:
            raise UserError(
                f"{final} was written but reads back differently: {reason}. Do not trust this disk; "
                "--output-dir on another one works"
            ) from None
        except OSError as error:
            kept = f"step {self.saved_step} is saved" if self.saved_step else "nothing is saved yet"
            raise UserError(
                f"{final} cannot be written ({error.strerror or error}); {kept}. "
                "Free some space on that disk, then --resume"
            ) from None

    def _scaler_state(self) -> ScalerState | None:
        if self.accelerator.scaler is None:
            return None
        found = self.accelerator.scaler.state_dict()
        return ScalerState(scale=float(found["scale"]), growth_tracker=int(found["_growth_tracker"]))

    def _check_other_tiles(self, state: TrainerState, allow_change: bool, log: Callable[[str], None]) -> None:
        difference = (
            f"holds {self.tile_count} tiles, and the run started with {state.tile_count}"
            if state.tile_count != self.tile_count
            else "keeps its tiles in other shards than when the run started"
        )
        if not allow_change:
            raise UserError(
                f"data.source {difference}, which would change the order of tiles; the same tiles work, a new "
                "--output-dir, or --allow-recipe-change"
            )
        log(f"[yellow]--allow-recipe-change: data.source {difference}; from here on the order of tiles differs[/]")

    def _restore_random_states(self, states: Tensor, log: Callable[[str], None]) -> None:
        processes = self.accelerator.num_processes
        try:
            if len(states) != processes:
                raise ValueError(f"they are those of {len(states)} processes, not {processes}")
            restore_random_states(states[self.accelerator.process_index])
        except ValueError as error:
            log(f"random states are not restored ({error}); training does not draw from them")


def _checksum(read_pattern: ReadPattern) -> str:
    return hashlib.sha256(f"{list(read_pattern.units)} {read_pattern.window}".encode()).hexdigest()[:16]


def random_states() -> Tensor:
    """Return the random states of this process, uint8 [bytes]. The length is the same on every rank of a run."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    others = [gauss is not None, gauss or 0.0, position, has_gauss, cached]
    states = np.array([(words, keys, others)], _RANDOM_STATES)
    own = torch.from_numpy(states.view(np.uint8))
    of_gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return torch.cat([own, torch.get_rng_state(), *of_gpu])


def restore_random_states(states: Tensor) -> None:
    """Restore what `random_states` returned; raise ValueError if it is invalid or from a machine with other devices."""
    if states.shape != random_states().shape:
        raise ValueError(f"{len(states)} bytes in place of this machine's {len(random_states())}")
    words, keys, others = np.frombuffer(states.numpy().tobytes(), _RANDOM_STATES, 1)[0]
    has_gauss_of_python, gauss, position, has_gauss, cached = others.tolist()
    of_torch = states[_RANDOM_STATES.itemsize :]
    size = len(torch.get_rng_state())
    try:
        random.setstate((3, tuple(words.tolist()), gauss if has_gauss_of_python else None))
        np.random.set_state(("MT19937", keys.copy(), int(position), int(has_gauss), cached))
        torch.set_rng_state(of_torch[:size].clone())
        if len(of_torch) > size:
            torch.cuda.set_rng_state(of_torch[size:].clone())
    except (TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"not a valid state: {error}") from None
