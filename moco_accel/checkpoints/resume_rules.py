"""Rules for resuming: how a run computes may change freely, what it computes only if the user allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.markup import escape

from moco_accel.common.errors import UserError
from moco_accel.common.versions import library_versions
from moco_accel.recipe.constants import RESNET_NAMES
from moco_accel.recipe.overrides import override_argument
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.fill_data_fields import inherit_data_fields

_FREE_SECTIONS = {"hardware", "memory", "planned", "evaluation", "run"}
_FREE_FIELDS = {
    "batch.micro_batch_size",
    "batch.accumulation_steps",
    "data.num_workers",
    "data.max_damaged_share",
}
_SCIENCE_IN_FREE_SECTIONS = {"memory.mixed_precision", "run.seed"}
# the saved state fits no other values
_FIXED_FIELDS = {
    "encoder.name",
    "encoder.bands",
    "moco.projector_hidden_dim",
    "moco.output_dim",
    "moco.predictor_output_norm",
    "moco.queue_size",
    "batch.global_batch_size",
    "optimizer.name",
}

Change = tuple[str, Any, Any]
"""Field, value before, value now."""


def resume_recipe(
    recipe: Recipe, before: Recipe, micro_batch_asked: int, allowed: bool, log: Callable[[str], None]
) -> tuple[Recipe, bool]:
    """Return the recipe with which a run continues from a checkpoint.

    Args:
        recipe: The recipe of this launch.
        before: The checkpoint's recipe.
        micro_batch_asked: The micro-batch size with which the run was started.
        allowed: Allow changes of the result (`--allow-recipe-change`).
        log: Prints a line.

    Returns:
        The recipe, and True if null fields of its data section must be filled in from the tiles again.

    Raises:
        UserError: If a change is not allowed.
    """
    recipe = keep_recovered_micro_batch(recipe, before, micro_batch_asked, log)
    inherited = inherit_data_fields(recipe, before)
    changes = find_result_changes(inherited, before)
    check_changes(changes, allowed, log)
    data_changed = any(name.startswith("data.") for name, _, _ in changes)
    return (recipe, True) if data_changed else (inherited, False)


def find_result_changes(recipe: Recipe, before: Recipe) -> list[Change]:
    """Return the fields that differ and affect the result of a run."""
    was = before.model_dump()
    changes = [
        (f"{section}.{field}", was[section][field], value)
        for section, fields in recipe.model_dump().items()
        if section != "planned"
        for field, value in fields.items()
        if was[section][field] != value
    ]
    science = _SCIENCE_IN_FREE_SECTIONS | _batch_science(before)
    free = _FREE_FIELDS - science
    return [
        change
        for change in changes
        if change[0] in science or (change[0].split(".")[0] not in _FREE_SECTIONS and change[0] not in free)
    ]


def _batch_science(recipe: Recipe) -> set[str]:
    """Return the fields of micro-batches that affect the result, through negatives or a ResNet's BatchNorm."""
    science = set()
    if recipe.encoder.name in RESNET_NAMES:
        science.add("batch.micro_batch_size")
    if recipe.batch.contrast_over == "micro_batch":
        science |= {"batch.micro_batch_size", "hardware.num_devices"}
    return science


def check_changes(changes: list[Change], allowed: bool, log: Callable[[str], None]) -> None:
    """Refuse changes that are not allowed, and log the others.

    Raises:
        UserError: If a change is not allowed, or the saved state does not fit it.
    """
    for name, was, now in changes:
        if name in _FIXED_FIELDS:
            raise UserError(
                f"{name}={now!r} differs from the run's {was!r}, and the run's saved state does not fit it; "
                f"--set {override_argument(name, was)} continues the run, a new --output-dir starts a new one"
            )
        if not allowed:
            others = ", ".join(other for other, _, _ in changes if other != name)
            raise UserError(
                f"{name}={now!r} differs from the run's {was!r} and would change its result"
                + (f" (as would {others})" if others else "")
                + f"; --set {override_argument(name, was)} continues the run, --allow-recipe-change changes it"
            )
    for name, was, now in changes:
        log(f"[yellow]--allow-recipe-change: {escape(f'{name}={now!r} from here on; it was {was!r}')}[/]")


def keep_recovered_micro_batch(recipe: Recipe, before: Recipe, asked: int, log: Callable[[str], None]) -> Recipe:
    """Keep the smaller micro-batch of a run that ran out of memory, unless the user asks for a new size.

    Args:
        recipe: The recipe of this launch.
        before: The checkpoint's recipe.
        asked: The micro-batch size with which the run was started.
        log: Prints a line.
    """
    recovered = before.batch.micro_batch_size
    is_new_size = recipe.batch.micro_batch_size != asked
    if recovered == asked or is_new_size or recipe.per_device_batch_size % recovered:
        return recipe
    log(f"batch.micro_batch_size={recovered}, as the run found that {asked} does not fit")
    smaller = {"micro_batch_size": recovered, "accumulation_steps": recipe.per_device_batch_size // recovered}
    return recipe.model_copy(update={"batch": recipe.batch.model_copy(update=smaller)})


def report_version_changes(before: dict[str, str], log: Callable[[str], None]) -> None:
    """Log one line if the versions of libraries have changed."""
    now = library_versions()
    was = {name: before.get(name, "absent") for name in now}
    changed = [f"{name} {now[name]} (was {was[name]})" for name in sorted(now) if was[name] != now[name]]
    if changed:
        versions = escape(", ".join(changed))
        log(
            f"[yellow]versions differ from the checkpoint's: {versions}; the run continues, but may not be bit-equal[/]"
        )
