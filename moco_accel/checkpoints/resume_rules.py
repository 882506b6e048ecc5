"""What may change when a run is resumed: where it runs, never what it computes, unless told so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.markup import escape

from moco_accel.common.errors import UserError
from moco_accel.common.versions import library_versions
from moco_accel.recipe.constants import RESNET_NAMES
from moco_accel.recipe.overrides import set_word
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.resolve import inherit

_FREE_SECTIONS = {"hardware", "memory", "planned", "evaluation", "run"}
_FREE_FIELDS = {
    "batch.micro_batch_size",
    "batch.accumulation_steps",
    "data.num_workers",
    "data.max_damaged_share",
}
_SCIENCE_IN_FREE_SECTIONS = {"memory.mixed_precision", "run.seed"}
# the state saved is that of these: it fits no other
_NEVER = {
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
"""A field, what it was, what it is now."""


def continued(
    recipe: Recipe, before: Recipe, micro_batch_asked: int, allowed: bool, say: Callable[[str], None]
) -> tuple[Recipe, bool]:
    """The recipe after a checkpoint of `before`; whether it leaves anything to its tiles again. Raises UserError."""
    recipe = keep_healed_micro_batch(recipe, before, micro_batch_asked, say)
    kept = inherit(recipe, before)
    changes = changed_science(kept, before)
    check_changes(changes, allowed, say)
    other_tiles = any(name.startswith("data.") for name, _, _ in changes)
    return (recipe, True) if other_tiles else (kept, False)


def changed_science(recipe: Recipe, before: Recipe) -> list[Change]:
    """Fields that differ and on which the run's result hangs."""
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
    """Where micro-batches are not a matter of memory: negatives, or a ResNet's BatchNorm, come from each."""
    science = set()
    if recipe.encoder.name in RESNET_NAMES:
        science.add("batch.micro_batch_size")
    if recipe.batch.contrast_over == "micro_batch":
        science |= {"batch.micro_batch_size", "hardware.num_devices"}
    return science


def check_changes(changes: list[Change], allowed: bool, say: Callable[[str], None]) -> None:
    """Raises UserError for changes of science that are not allowed; says each that is."""
    for name, was, now in changes:
        if name in _NEVER:
            raise UserError(
                f"{name}={now!r} differs from the run's {was!r}, and what the run has saved fits no other; "
                f"--set {set_word(name, was)} goes on with it, a new --output-dir starts anew"
            )
        if not allowed:
            others = ", ".join(other for other, _, _ in changes if other != name)
            raise UserError(
                f"{name}={now!r} differs from the run's {was!r} and would change its result"
                + (f" (as would {others})" if others else "")
                + f"; --set {set_word(name, was)} goes on with it, --allow-recipe-change changes it"
            )
    for name, was, now in changes:
        say(f"[yellow]--allow-recipe-change: {escape(f'{name}={now!r} from here on; it was {was!r}')}[/]")


def keep_healed_micro_batch(recipe: Recipe, before: Recipe, asked: int, say: Callable[[str], None]) -> Recipe:
    """A run that ran out of memory goes on in smaller micro-batches, also when it is resumed as it was started."""
    ran = before.batch.micro_batch_size
    as_started = recipe.batch.micro_batch_size == asked
    if ran == asked or not as_started or recipe.per_device_batch_size % ran:
        return recipe
    say(f"batch.micro_batch_size={ran}, as the run found that {asked} does not fit")
    smaller = {"micro_batch_size": ran, "accumulation_steps": recipe.per_device_batch_size // ran}
    return recipe.model_copy(update={"batch": recipe.batch.model_copy(update=smaller)})


def say_versions(before: dict[str, str], say: Callable[[str], None]) -> None:
    """One line where libraries have changed."""
    now = library_versions()
    was = {name: before.get(name, "absent") for name in now}
    changed = [f"{name} {now[name]} (was {was[name]})" for name in sorted(now) if was[name] != now[name]]
    if changed:
        what = escape(", ".join(changed))
        say(
            f"[yellow]other versions than the checkpoint's: {what}; the run goes on, not to the bit as it would have[/]"
        )
