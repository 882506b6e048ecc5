"""Send the rows of metrics and evaluations to the recipe's trackers, through Accelerate."""

from __future__ import annotations

import secrets
from pathlib import Path

from accelerate import Accelerator

from moco_accel.common.atomic_files import write_atomically
from moco_accel.common.errors import UserError
from moco_accel.training.run_context import RunContext
from moco_accel.training.run_health import Row

PROJECT = "moco-accel"
TRACKING_FOLDER = "tracking"


def start_trackers(context: RunContext) -> None:
    """Start the trackers that `build_accelerator` got; those of a resumed run continue in the same page.

    Raises:
        UserError: If a tracker cannot be started.
    """
    recipe, run, first_step = context.recipe, context.run, context.steps.start
    if not recipe.run.trackers:
        return

    def start() -> None:
        name, run_id = run.resolve().name, _run_id(run)
        options = {
            # hides what a killed run logged after its checkpoint
            "tensorboard": {"purge_step": first_step} if first_step else {},
            "wandb": {"name": name, "id": run_id, "resume": "allow", "dir": str(run / TRACKING_FOLDER)},
            "trackio": {"name": f"{name}-{run_id}", "resume": "allow"},
        }
        config = {
            f"{section}.{field}": value if isinstance(value, int | float | str) else str(value)
            for section, fields in recipe.model_dump(exclude={"planned"}).items()
            for field, value in fields.items()
        }
        try:
            context.accelerator.init_trackers(PROJECT, config, options)
        except Exception as error:  # each tracker has its own errors: no login, no network, no space
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"run.trackers={recipe.run.trackers} cannot be started ({reason}); run.trackers=[] works, "
                "WANDB_MODE=offline for wandb without a network"
            ) from None

    context.control_group.run_on_rank_zero(start)


def log_row(accelerator: Accelerator, row: Row, prefix: str = "") -> None:
    """Send the numbers of a row to the trackers at its `step`; call it on rank 0."""
    values = {
        f"{prefix}{name}": value for name, value in row.items() if name != "step" and isinstance(value, int | float)
    }
    accelerator.log(values, step=row["step"])


def finish_trackers(accelerator: Accelerator) -> None:
    """Finish the trackers. Accelerate's `end_training` would destroy the process group as well."""
    if accelerator.is_main_process:
        for tracker in accelerator.trackers:
            tracker.finish()


def _run_id(run: Path) -> str:
    """Return the id that the run keeps in its folder, so that a resumed run continues in its page."""
    path = run / TRACKING_FOLDER / "id"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()
