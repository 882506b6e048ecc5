"""Read, validate and write recipes."""

from __future__ import annotations

import difflib
from pathlib import Path

from pydantic import BaseModel, ValidationError

from moco_accel import __version__
from moco_accel.common.errors import MAX_NAME_CHARACTERS, UserError, short_repr
from moco_accel.recipe.overrides import apply_overrides, find_section
from moco_accel.recipe.rules import check_rules
from moco_accel.recipe.schema import Recipe
from moco_accel.recipe.text import dump_yaml, read_yaml


def recipe_from_dict(fields: object) -> Recipe:
    """Validate plain data.

    Raises:
        UserError: If a field or a rule is violated. The message names the first mistake.
    """
    if not isinstance(fields, dict):
        raise UserError(f"a recipe is a mapping of sections, not {type(fields).__name__}; start with 'encoder:'")
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as error:
        raise UserError(explain_validation_error(error, Recipe)) from None
    check_rules(recipe)
    return recipe


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe, apply `section.field=value` overrides and validate the result.

    Raises:
        UserError: If the file cannot be read, or an override, a field or a rule is violated.
    """
    return recipe_from_dict(apply_overrides(read_yaml(Path(path)), overrides or []))


def recipe_yaml(recipe: Recipe, comment: str = "") -> bytes:
    """Return `recipe` as YAML with every field written out, below `comment` of one or more lines."""
    fields = recipe.model_dump(exclude={"planned"} if recipe.planned is None else None)
    # a path in the comment may hold bytes that are not UTF-8
    return dump_yaml(fields, comment).encode("utf-8", errors="backslashreplace")


def save_recipe(recipe: Recipe, path: str | Path, comment: str = "") -> None:
    """Write `recipe_yaml` to `path`; create its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(recipe_yaml(recipe, comment))


def explain_validation_error(error: ValidationError, schema: type[BaseModel]) -> str:
    """Return the first mistake of `error` in one line: field=value, the rule, a value that works."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    name, kind, message = ".".join(map(_printable, parts)) or "recipe", first["type"], " ".join(first["msg"].split())
    if kind == "extra_forbidden":
        section = find_section(schema, parts[:-1])
        known = list(section.model_fields) if section else []
        near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{name}={short_repr(first['input'])} is not a field of a recipe; {hint} (moco-accel {__version__})"
    if kind == "missing":
        return f"{name} is missing; every recipe needs it{_example(schema, parts)}"
    rule = message[0].lower() + message[1:]
    return f"{name}={short_repr(first['input'])}: {rule}{_example(schema, parts)}"


def _example(schema: type[BaseModel], path: list[str]) -> str:
    """Return `; VALUE works` with the field's default, or its example if it has no default; of an item, the list's."""
    is_item = bool(path) and path[-1].isdecimal()
    path = path[:-1] if is_item else path
    section = find_section(schema, path[:-1])
    field = section.model_fields.get(path[-1]) if section and path else None
    if field is None or isinstance(field.default, BaseModel):
        return ""
    works = (field.examples or [None])[0] if field.is_required() else field.get_default(call_default_factory=True)
    if works is None and field.is_required():
        return ""
    return f"; {'.'.join(path) + '=' if is_item else ''}{'null' if works is None else works} works"


def _printable(part: str) -> str:
    return part if part.isprintable() and len(part) <= MAX_NAME_CHARACTERS else short_repr(part)
