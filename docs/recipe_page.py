"""Writes docs/recipe.md, the list of all recipe fields, from the schema and its docstrings: `make docs`."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from moco_accel.recipe.data_sections import PRESETS, Section
from moco_accel.recipe.encoder_names import ENCODER_NAMES
from moco_accel.recipe.schema import Recipe

PAGE = Path(__file__).with_name("recipe.md")
_HEAD = """# Every field of a recipe

A recipe is a YAML file with these sections. Fields without a default must be there; `moco-plan` computes and writes
them. Change a field in the file, or for one run with `--set 'section.field=value'`, once per field. An unknown field, a
wrong type or a value outside the limits is an error before any tile is read. `RUN/recipe.yaml` holds every field of a
run, also the values that the run filled in.

The code writes this page: `make docs`.
"""
_LIMITS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}
_HUGE = 65_536  # upper limits from here on only keep arithmetic finite
_TYPES = {bool: "true, false", int: "whole number", float: "number", str: "text", type(None): "null", dict: "mapping"}


def descriptions(section: type[Section]) -> dict[str, str]:
    """Return each field's description from the `Attributes:` of a section's docstring."""
    entries = (inspect.getdoc(section) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", entries, re.M)
    return {name: " ".join(text.split()) for name, text in found}


def values(annotation: Any) -> str:
    """Return a type in words, such as `number or null`, or its choices."""
    if annotation in _TYPES:
        return _TYPES[annotation]
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    parts = get_args(annotation)
    if get_origin(annotation) is list:
        return (
            "list of " + values(parts[0]) + ("s" if parts[0] is not str and get_origin(parts[0]) is not Literal else "")
        )
    if get_origin(annotation) is dict:
        return "mapping"
    if hasattr(annotation, "__metadata__"):
        return values(annotation.__origin__)
    return " or ".join(dict.fromkeys(values(part) for part in parts))


def limits(field: FieldInfo) -> str:
    """Return a field's limits, such as `≥ 0, ≤ 1`; empty if it has none that a person would meet."""
    found = []
    for rule in field.metadata:
        for name, text in _LIMITS.items():
            bound = getattr(rule, name, None)
            if bound is not None and not (name in ("le", "lt") and bound >= _HUGE) and bound > -_HUGE:
                found.append(text.format(f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"))
    return ", ".join(found)


def default(field: FieldInfo) -> str:
    """Return a field's default as YAML, or a dash."""
    if field.is_required():
        return "–"
    value = field.get_default(call_default_factory=True)
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def section_table(name: str, section: type[Section]) -> str:
    """Return a section's heading, summary and table."""
    summary = (inspect.getdoc(section) or "").partition("Attributes:")[0].strip()
    texts = descriptions(section)
    rows = ["| field | default | values | meaning |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        allowed = ", ".join(part for part in (values(field.annotation), limits(field)) if part)
        rows.append(
            f"| `{name}.{key}` | {default(field)} | {allowed} | {texts[key]} |".replace(
                "`encoder_names.ENCODER_NAMES`", "the names below"
            )
        )
    return f"## {name}\n\n{summary}\n\n" + "\n".join(rows) + "\n"


def presets_table() -> str:
    """Return the table of what each augmentation preset changes."""
    fields = list(dict.fromkeys(field for preset in PRESETS.values() for field in preset))
    defaults = {field: Recipe.model_fields["augment"].annotation.model_fields[field].default for field in fields}
    rows = [f"| | `satellite` | {' | '.join(f'`{name}`' for name in PRESETS)} |", "|---|---|" + "---|" * len(PRESETS)]
    for field in fields:
        cells = [json.dumps(preset.get(field, defaults[field])) for preset in ({}, *PRESETS.values())]
        rows.append(f"| `augment.{field}` | {' | '.join(cells)} |")
    return "Where the presets differ:\n\n" + "\n".join(rows) + "\n"


def page() -> str:
    """Return the whole page."""
    parts = [_HEAD]
    for name, field in Recipe.model_fields.items():
        section = next(part for part in (field.annotation, *get_args(field.annotation)) if inspect.isclass(part))
        parts.append(section_table(name, section))
        if name == "encoder":
            parts.append("Encoders: " + ", ".join(f"`{encoder}`" for encoder in ENCODER_NAMES) + ".\n")
        if name == "augment":
            parts.append(presets_table())
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
