"""A run in this process without the training loop: steps on random views, saved by `CheckpointSaver`."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from support.recipes import small_recipe
from support.steps import make_views

from moco_accel.checkpoints.run_folder import newest_intact
from moco_accel.checkpoints.saver import CheckpointSaver
from moco_accel.networks.moco import build_moco
from moco_accel.processes.control_group import ControlGroup
from moco_accel.processes.signals import StopRequest
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.base import ReadPattern
from moco_accel.training.optimizers import build_optimizer, set_lr
from moco_accel.training.step import build_accelerator, prepare, train_step

TILES = 40


class SavedRun:
    """Trains and saves; resumes from the newest checkpoint of its folder."""

    def __init__(self, run: Path, recipe: Recipe | None = None, scale: float | None = None) -> None:
        AcceleratorState._reset_state()
        self.run, self.logged = run, list[str]()
        self.recipe = recipe or small_recipe(moco={"queue_size": 8})
        self.accelerator = build_accelerator(self.recipe, cpu=True)
        if scale is not None:
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
        set_seed(self.recipe.run.seed)
        self.moco = build_moco(self.recipe)
        self.model, self.optimizer = prepare(self.accelerator, self.moco, build_optimizer(self.recipe, self.moco))
        micro_batch = self.recipe.batch.micro_batch_size
        networks = self.moco, self.optimizer, micro_batch
        self.saver = CheckpointSaver(
            run, self.accelerator, ControlGroup(), *networks, TILES, ReadPattern(), "", StopRequest()
        )
        found = newest_intact(run, self.logged.append)
        self.step, _ = self.saver.restore(found, False, self.logged.append)

    def train(self, steps: int) -> list[float]:
        """Return the loss of each step."""
        losses = []
        for _ in range(steps):
            first, second = (v.split(self.recipe.batch.micro_batch_size) for v in make_views(self.recipe, self.step))
            set_lr(self.optimizer, 1e-3)
            losses.append(
                train_step(self.accelerator, self.model, self.optimizer, (first, second), self.recipe, 0.9).loss.item()
            )
            self.step += 1
        return losses

    def save(self) -> Path:
        self.saver.save(self.recipe, self.step, 0)
        return self.run / "checkpoints" / f"step_{self.step:08d}"


def checkpoint_names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


SMALL = small_recipe(encoder={"name": "resnet10"}, optimizer={"name": "lars"}, run={"keep_checkpoints": 2})
