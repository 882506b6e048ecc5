"""Rules for resuming: how a run computes may change freely, what it computes only if the user allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.markup import escape

from moco_accel.checkpoints.checkpoint import TrainerState
from moco_accel.checkpoints.same_tiles import compare_sources
from moco_accel.common.errors import UserError
from moco_accel.common.versions import library_versions
from moco_accel.recipe.encoder_names import RESNET_NAMES
from moco_accel.recipe.overrides import override_argument
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.fill_data_fields import inherit_data_fields

# sections and fields that do not affect the result, apart from exceptions in `find_result_changes`
_FREE = {"hardware", "memory", "evaluation", "run"}
_FREE |= {"batch.micro_batch_size", "batch.accumulation_steps", "data.num_workers", "data.max_damaged_share"}
# the saved state fits no other values
_FIXED_FIELDS = {"encoder.name", "encoder.bands", "batch.global_batch_size", "optimizer.name", "moco.queue_size"}
_FIXED_FIELDS |= {"moco.projector_hidden_dim", "moco.output_dim", "moco.predictor_output_norm"}

Change = tuple[str, Any, Any]
"""Field, value before, value now."""


def resume_recipe(
    recipe: Recipe, before: Recipe, state: TrainerState, allowed: bool, log: Callable[[str], None]
) -> tuple[Recipe, bool]:
    """Return the recipe with which a run continues from a checkpoint.

    Args:
        recipe: The recipe of this launch.
        before: The checkpoint's recipe.
        state: The checkpoint's state: its micro-batch size and tiles are compared.
        allowed: Allow changes of the result (`--allow-recipe-change`).

    Returns:
        The recipe, and True if null fields of its data section must be filled in from the tiles again.

    Raises:
        UserError: If a change is not allowed.
    """
    recipe = keep_recovered_micro_batch(recipe, before, state.micro_batch_asked, log)
    if recipe.data.split is None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"split": before.data.split})})
    before, difference = compare_sources(recipe, before, state.tile_count, state.tiles_digest, log)
    inherited = inherit_data_fields(recipe, before)
    changes = find_result_changes(inherited, before)
    check_changes(changes, allowed, log, difference)
    data_changed = any(name.startswith("data.") for name, _, _ in changes)
    return (recipe, True) if data_changed else (inherited, False)


def find_result_changes(recipe: Recipe, before: Recipe) -> list[Change]:
    """Return the fields that differ and affect the result of a run."""
    was = before.model_dump()
    science = {"memory.mixed_precision", "run.seed"}
    # micro-batches affect the result through negatives or a ResNet's BatchNorm
    if before.encoder.name in RESNET_NAMES:
        science.add("batch.micro_batch_size")
    if before.batch.contrast_over == "micro_batch":
        science |= {"batch.micro_batch_size", "hardware.num_devices"}
    return [
        (name, was[section][field], value)
        for section, fields in recipe.model_dump(exclude={"planned"}).items()
        for field, value in fields.items()
        if was[section][field] != value and ((name := f"{section}.{field}") in science or not {section, name} & _FREE)
    ]


def check_changes(changes: list[Change], allowed: bool, log: Callable[[str], None], difference: str = "") -> None:
    """Log changes; raise UserError if one is not allowed, or the saved state does not fit it.

    Args:
        difference: How the tiles of another source differ from the run's.
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
                + (f": {difference}" if difference and name in ("data.source", "data.split") else "")
                + (f" (as would {others})" if others else "")
                + f"; --set {override_argument(name, was)} continues the run, --allow-recipe-change changes it"
            )
    for name, was, now in changes:
        log(f"[yellow]--allow-recipe-change: {escape(f'{name}={now!r} from here on; it was {was!r}')}[/]")


def keep_recovered_micro_batch(recipe: Recipe, before: Recipe, asked: int, log: Callable[[str], None]) -> Recipe:
    """Keep the smaller micro-batch of a run that ran out of memory, unless the user asks for a new size.

    The arguments are those of `resume_recipe`.
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
        differ = f"versions differ from the checkpoint's: {escape(', '.join(changed))}"
        log(f"[yellow]{differ}; the run continues, but may not be bit-equal[/]")
