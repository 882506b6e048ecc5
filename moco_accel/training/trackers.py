"""Trackers of a recipe, driven by Accelerate: they get each row of the log and of the evaluations."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from moco_accel.common.atomic_files import write_atomically
from moco_accel.common.errors import UserError
from moco_accel.processes.control_group import Agreement
from moco_accel.recipe.schema import Recipe

PROJECT = "moco-accel"
FOLDER = "tracking"

Row = dict[str, Any]


def start_trackers(accelerator: Accelerator, agreement: Agreement, recipe: Recipe, run: Path, first_step: int) -> None:
    """Start, or go on with, what `build_accelerator` was told of. Raises UserError where one cannot."""
    if not recipe.run.trackers:
        return

    def start() -> None:
        name, run_id = run.resolve().name, _id_of(run)
        options = {
            # what a killed run has logged past its checkpoint is hidden
            "tensorboard": {"purge_step": first_step} if first_step else {},
            "wandb": {"name": name, "id": run_id, "resume": "allow", "dir": str(run / FOLDER)},
            "trackio": {"name": f"{name}-{run_id}", "resume": "allow"},
        }
        config = {
            f"{section}.{field}": value if isinstance(value, int | float | str) else str(value)
            for section, fields in recipe.model_dump(exclude={"planned"}).items()
            for field, value in fields.items()
        }
        try:
            accelerator.init_trackers(PROJECT, config, options)
        except Exception as error:  # each has its own: no login, no network, no room
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"run.trackers={recipe.run.trackers} cannot be started ({said}); run.trackers=[] works, "
                "WANDB_MODE=offline for wandb without a network"
            ) from None

    agreement.by_first(start)


def track(accelerator: Accelerator, row: Row, prefix: str = "") -> None:
    """One row, at its `step`; on the first process."""
    values = {f"{prefix}{name}": value for name, value in row.items() if name != "step" and value is not None}
    accelerator.log(values, step=row["step"])


def finish_trackers(accelerator: Accelerator) -> None:
    """Accelerate's own `end_training` would take down the process group as well."""
    if accelerator.is_main_process:
        for tracker in accelerator.trackers:
            tracker.finish()


def _id_of(run: Path) -> str:
    """The run's own, kept in its folder, so that a resumed run goes on in its page."""
    path = run / FOLDER / "id"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()
