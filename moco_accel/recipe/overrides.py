"""`--set section.field=value`: overrides of a recipe's fields."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import yaml
from pydantic import BaseModel

from moco_accel.common.errors import UserError, short_repr
from moco_accel.recipe.schema import Recipe
from moco_accel.recipe.text import RecipeDumper, load_yaml

_NULLS = ("", "~", "null", "Null", "NULL")


def apply_overrides(fields: object, overrides: list[str]) -> object:
    """Apply each `section.field=value` to a copy of plain data.

    A text field takes its value literally, except for null and quoted text. Other values are parsed as YAML.

    Raises:
        UserError: If an override has another form, names no section, or its value is not YAML.
    """
    changed = copy.deepcopy(fields)
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, field = name.partition(".")
        if not (equals and dot and field):
            raise UserError(f"--set {short_repr(override)} is not section.field=value; e.g. --set schedule.epochs=100")
        if not isinstance(changed, dict) or not isinstance(changed.setdefault(section, {}), dict):
            raise UserError(f"--set {short_repr(override)}: {short_repr(section)} is not a section of the recipe")
        changed[section][field] = _parse_text(text) if _is_text(section, field) else _parse_yaml(text, override)
    return changed


def override_argument(name: str, value: object) -> str:
    """Return `section.field=value`, quoted for a shell, which `apply_overrides` reads back as `value`."""
    if isinstance(value, str) and value.isprintable() and _parse_text(value) == value:
        return shlex.quote(f"{name}={value}")
    style = '"' if isinstance(value, str) else None
    text = yaml.dump(
        value, Dumper=RecipeDumper, default_style=style, default_flow_style=True, width=float("inf"), allow_unicode=True
    )
    text = text.removesuffix("...\n").strip()
    return shlex.quote(f"{name}={text}")


def find_section(schema: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """Return the section of `schema` at `path`; None if there is none."""
    for part in path:
        annotation = schema.model_fields[part].annotation if part in schema.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        schema = annotation
    return schema


def _is_text(section: str, field: str) -> bool:
    found = find_section(Recipe, [section])
    known = found.model_fields if found else {}
    return field in known and known[field].annotation in (str, str | None)


def _parse_text(text: str) -> str | None:
    text = text.strip()
    if text in _NULLS:
        return None
    if text[0] in "'\"":
        with suppress(yaml.YAMLError, ValueError):
            quoted = load_yaml(text)
            return quoted if isinstance(quoted, str) else text
    return text


def _parse_yaml(text: str, override: str) -> Any:
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(
            f"--set {short_repr(override)}: {short_repr(text)} is not a YAML value; "
            "e.g. 1e-4, true, [1, 2], ['a: b', c] work"
        ) from None
