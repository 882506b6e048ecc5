"""Recipe text: YAML in and out, `section.field=value` overrides, and errors in one line a person can act on."""

from __future__ import annotations

import copy
import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from moco_accel import __version__

MAX_RECIPE_BYTES = 1 << 20
_REPLACED_TAGS = ("bool", "float", "timestamp")


class RecipeError(ValueError):
    """The user's mistake: one line that names field, value, rule and a value that works. Exit code 2."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-4` is a number (PyYAML reads a string), `no` is a word (PyYAML reads false)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _REPLACED_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$", re.I), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)


def parse_yaml(path: Path) -> object:
    """Read one YAML document of plain data. Raises RecipeError when it is absent, too large or no YAML."""
    if not path.is_file():
        folder = path.parent if path.parent != Path() else Path("recipes")
        near = sorted(str(p) for p in folder.glob("*.yaml"))
        raise RecipeError(
            f"--recipe={path} does not exist; "
            + (f"there are: {', '.join(near)}" if near else "moco-plan --gpus 2 --vram 8 writes one")
        )
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise RecipeError(f"--recipe={path} has {path.stat().st_size} bytes; a recipe has at most {MAX_RECIPE_BYTES}")
    try:
        return _load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise RecipeError(f"--recipe={path} is not YAML: {' '.join(str(error).split())}") from None


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def dump_yaml(fields: dict[str, Any], comment: str) -> str:
    """YAML with one section per block, in the order of `fields`, under `# comment` lines."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return head + yaml.dump(fields, Dumper=_Dumper, sort_keys=False, width=110, default_flow_style=None)


class _Dumper(yaml.SafeDumper):
    """Whole floats as people write them: 40, not 40.0."""


def _represent_float(dumper: _Dumper, value: float) -> yaml.Node:
    return dumper.represent_int(int(value)) if value.is_integer() else yaml.SafeDumper.represent_float(dumper, value)


_Dumper.add_representer(float, _represent_float)


def set_fields(fields: object, overrides: list[str]) -> object:
    """Apply `section.field=value` to plain data; values are read as YAML. Raises RecipeError."""
    changed = copy.deepcopy(fields)
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, field = name.partition(".")
        if not (equals and dot and field):
            raise RecipeError(f"--set {override!r} is not section.field=value; e.g. --set schedule.epochs=100")
        if not isinstance(changed, dict) or not isinstance(changed.setdefault(section, {}), dict):
            raise RecipeError(f"--set {override!r}: {section!r} is not a section of the recipe")
        try:
            changed[section][field] = _load(text)
        except (yaml.YAMLError, ValueError):
            raise RecipeError(f"--set {override!r}: {text!r} is not a YAML value; e.g. 1e-4, true, [1, 2]") from None
    return changed


def explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first mistake of `error` as one line: field=value, the rule, a value that works."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    name, kind, message = ".".join(parts), first["type"], first["msg"]
    if kind == "extra_forbidden":
        known = _field_names(schema, parts[:-1])
        near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{name}={_short(first['input'])} is not a field of a recipe; {hint} (moco-accel {__version__})"
    if kind == "missing":
        return f"{name} is missing; every recipe needs it{_example(schema, parts)}"
    rule = message[0].lower() + message[1:]
    return f"{name}={_short(first['input'])}: {rule}{_example(schema, parts)}"


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
    field = schema.model_fields.get(path[-1])
    if field is None or isinstance(field.default, BaseModel):
        return ""
    works = (field.examples or [None])[0] if field.is_required() else field.default
    if works is None:
        return "" if field.is_required() else "; null works"
    return f"; {works} works"


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
