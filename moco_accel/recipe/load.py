"""Read, validate and write recipes."""

from __future__ import annotations

import difflib
from pathlib import Path

from pydantic import BaseModel, ValidationError

from moco_accel import __version__
from moco_accel.common.errors import LONGEST_NAME, UserError, short
from moco_accel.recipe.overrides import set_fields
from moco_accel.recipe.rules import check_rules
from moco_accel.recipe.schema import Recipe
from moco_accel.recipe.text import dump_yaml, parse_yaml


def recipe_from_dict(fields: object) -> Recipe:
    """Validate plain data. Raises UserError (one line) on the first thing that is wrong."""
    if not isinstance(fields, dict):
        raise UserError(f"a recipe is a mapping of sections, not {type(fields).__name__}; start with 'encoder:'")
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as error:
        raise UserError(explain(error, Recipe)) from None
    check_rules(recipe)
    return recipe


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe, apply `section.field=value` overrides, validate. Raises UserError."""
    return recipe_from_dict(set_fields(parse_yaml(Path(path)), overrides or []))


def recipe_yaml(recipe: Recipe, comment: str = "") -> bytes:
    """`recipe` with every field spelled out, under a `# comment` of one or more lines."""
    fields = recipe.model_dump(exclude={"planned"} if recipe.planned is None else None)
    # a path in the comment may hold bytes that are no UTF-8
    return dump_yaml(fields, comment).encode("utf-8", errors="backslashreplace")


def save_recipe(recipe: Recipe, path: str | Path, comment: str = "") -> None:
    """Write `recipe_yaml` to `path`, whose folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(recipe_yaml(recipe, comment))


def explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first mistake of `error` as one line: field=value, the rule, a value that works."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    name, kind, message = ".".join(map(_in_a_word, parts)) or "recipe", first["type"], " ".join(first["msg"].split())
    if kind == "extra_forbidden":
        known = _field_names(schema, parts[:-1])
        near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{name}={short(first['input'])} is not a field of a recipe; {hint} (moco-accel {__version__})"
    if kind == "missing":
        return f"{name} is missing; every recipe needs it{_example(schema, parts)}"
    rule = message[0].lower() + message[1:]
    return f"{name}={short(first['input'])}: {rule}{_example(schema, parts)}"


def _field_names(schema: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        annotation = schema.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        schema = annotation
    return list(schema.model_fields)


def _example(schema: type[BaseModel], path: list[str]) -> str:
    """`; … works` with the field's default, or its example where it has none."""
    for part in path[:-1]:
        annotation = schema.model_fields[part].annotation if part in schema.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        schema = annotation
    field = schema.model_fields.get(path[-1]) if path else None
    if field is None or isinstance(field.default, BaseModel):
        return ""
    works = (field.examples or [None])[0] if field.is_required() else field.default
    if works is None:
        return "" if field.is_required() else "; null works"
    return f"; {works} works"


def _in_a_word(part: str) -> str:
    return part if part.isprintable() and len(part) <= LONGEST_NAME else short(part)
