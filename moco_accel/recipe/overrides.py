"""`--set section.field=value`: overrides of a recipe's fields."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from moco_accel.common.errors import UserError, short_repr
from moco_accel.recipe.schema import Recipe
from moco_accel.recipe.text import RecipeDumper, load_yaml

_NULLS = ("", "~", "null", "Null", "NULL")


def apply_overrides(fields: object, overrides: list[str]) -> object:
    """Apply each `section.field=value` to a copy of plain data.

    A text field takes its value literally, except for null and quoted text. Other values are parsed as YAML; the items
    of a list may be given with commas alone: `data.bands=B4,B3,B2`.

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
        annotation = _annotation(section, field)
        if annotation in (str, str | None):
            changed[section][field] = _parse_text(text)
        elif _is_list(annotation) and text.strip() not in _NULLS and text.strip()[0] not in "[{":
            changed[section][field] = [_parse_yaml(item, override) for item in text.split(",") if item.strip()]
        else:
            changed[section][field] = _parse_yaml(text, override)
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


def _annotation(section: str, field: str) -> Any:
    found = find_section(Recipe, [section])
    return found.model_fields[field].annotation if found and field in found.model_fields else None


def _is_list(annotation: Any) -> bool:
    return any(get_origin(part) is list for part in (annotation, *get_args(annotation)))


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
