"""`--set section.field=value`: overrides of a recipe's fields."""

from __future__ import annotations

import copy
import shlex
from contextlib import suppress
from typing import Any

import yaml
from pydantic import BaseModel

from moco_accel.common.errors import UserError, short
from moco_accel.recipe.schema import Recipe
from moco_accel.recipe.text import Dumper, load_yaml

_NULLS = ("", "~", "null", "Null", "NULL")


def set_fields(fields: object, overrides: list[str]) -> object:
    """Apply `section.field=value` to plain data. Raises UserError.

    A field of text takes the value as it is, but for null and what stands in quotes; all else is read as YAML.
    """
    changed = copy.deepcopy(fields)
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, field = name.partition(".")
        if not (equals and dot and field):
            raise UserError(f"--set {short(override)} is not section.field=value; e.g. --set schedule.epochs=100")
        if not isinstance(changed, dict) or not isinstance(changed.setdefault(section, {}), dict):
            raise UserError(f"--set {short(override)}: {short(section)} is not a section of the recipe")
        changed[section][field] = _read_text(text) if _takes_text(section, field) else _read_yaml(text, override)
    return changed


def set_word(name: str, value: object) -> str:
    """`section.field=value` as one word to paste behind `--set` in a shell: what `set_fields` reads as `value`."""
    if not isinstance(value, str):
        text = _in_a_line(value)
    elif value.isprintable() and _read_text(value) == value:
        text = value
    else:
        text = _in_a_line(value, '"')
    return shlex.quote(f"{name}={text}")


def _in_a_line(value: object, style: str | None = None) -> str:
    text = yaml.dump(
        value, Dumper=Dumper, default_style=style, default_flow_style=True, width=float("inf"), allow_unicode=True
    )
    return text.removesuffix("...\n").strip()


def _takes_text(section: str, field: str) -> bool:
    fields = Recipe.model_fields[section].annotation if section in Recipe.model_fields else None
    if not (isinstance(fields, type) and issubclass(fields, BaseModel) and field in fields.model_fields):
        return False
    return fields.model_fields[field].annotation in (str, str | None)


def _read_text(text: str) -> str | None:
    text = text.strip()
    if text in _NULLS:
        return None
    if text[0] in "'\"":
        with suppress(yaml.YAMLError, ValueError):
            quoted = load_yaml(text)
            return quoted if isinstance(quoted, str) else text
    return text


def _read_yaml(text: str, override: str) -> Any:
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(
            f"--set {short(override)}: {short(text)} is not a YAML value; e.g. 1e-4, true, [1, 2], ['a: b', c] work"
        ) from None
