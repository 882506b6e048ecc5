"""Recipe text: YAML in and out, `section.field=value` overrides, and errors in one line a person can act on."""

from __future__ import annotations

import copy
import difflib
import re
import shlex
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from moco_accel import __version__

MAX_RECIPE_BYTES = 1 << 18
_MOST_NODES, _MOST_LEVELS = 4000, 20  # of YAML: a recipe has some 200, in 3
_LONGEST_NAME, _LONGEST_MESSAGE = 60, 3000
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_REPLACED_TAGS = ("bool", "float", "int", "timestamp", "merge", "value")
_NULLS = ("", "~", "null", "Null", "NULL")


class RecipeError(ValueError):
    """The user's mistake: one line that names field, value, rule and a value that works. Exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(in_one_line(message))


def in_one_line(message: str) -> str:
    """`message` without what would break its line, or steer a terminal: it may quote names that others gave."""
    text = _UNSEEN.sub(" ", message)
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"


class _Loader(yaml.SafeLoader):
    """Plain data of YAML 1.2: `1e-4` is a number (PyYAML reads a string), `no` is a word (PyYAML reads false).

    Anchors and tags, with which a short text can mean what no memory holds, are refused; so are keys given twice.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._nodes, self._levels = self._nodes + 1, self._levels + 1
        if self._nodes > _MOST_NODES or self._levels > _MOST_LEVELS:
            raise yaml.YAMLError(f"more than {_MOST_NODES} values, or deeper than {_MOST_LEVELS} levels")
        if event.anchor or getattr(event, "tag", None):
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: &anchors, *aliases and !tags are not read")
        node = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        self._levels -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for (_, key), count in keys.items():
            if count > 1:
                raise yaml.YAMLError(
                    f"line {node.start_mark.line + 1}: {short(key)} is given {count} times; once works"
                )
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))


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
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+(_\d+)*$"), list("-+0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def parse_yaml(path: Path) -> object:
    """Read one YAML document of plain data. Raises RecipeError when it is absent, too large or no YAML."""
    if not path.is_file():
        folder = path.parent if path.parent != Path() else Path("recipes")
        near = sorted(str(p) for p in folder.glob("*.yaml"))
        raise RecipeError(
            f"--recipe={path} does not exist; "
            + (f"there are: {', '.join(near)}" if near else "moco-plan --gpus 2 --vram 8 writes one")
        )
    with path.open("rb") as file:
        raw = file.read(MAX_RECIPE_BYTES + 1)
    if len(raw) > MAX_RECIPE_BYTES:
        raise RecipeError(f"--recipe={path} has {path.stat().st_size} bytes; a recipe has at most {MAX_RECIPE_BYTES}")
    try:
        return _load(raw.decode())
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"--recipe={path} is no recipe in YAML: {' '.join(str(error).split())}") from None


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def dump_yaml(fields: dict[str, Any], comment: str) -> str:
    """YAML with one section per block, in the order of `fields`, under `# comment` lines."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    body = yaml.dump(fields, Dumper=_Dumper, sort_keys=False, width=110, default_flow_style=None, allow_unicode=True)
    return head + body


class _Dumper(yaml.SafeDumper):
    """Whole floats as people write them: 40, not 40.0. Text that any reader takes for more is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {
    first: _Loader.yaml_implicit_resolvers.get(first, []) + yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])
    for first in {*_Loader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
}


def _represent_float(dumper: _Dumper, value: float) -> yaml.Node:
    return dumper.represent_int(int(value)) if value.is_integer() else yaml.SafeDumper.represent_float(dumper, value)


_Dumper.add_representer(float, _represent_float)


def set_fields(fields: object, overrides: list[str]) -> object:
    """Apply `section.field=value` to plain data. Raises RecipeError.

    A field of text takes the value as it is, but for null and what stands in quotes; all else is read as YAML.
    """
    changed = copy.deepcopy(fields)
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, field = name.partition(".")
        if not (equals and dot and field):
            raise RecipeError(f"--set {short(override)} is not section.field=value; e.g. --set schedule.epochs=100")
        if not isinstance(changed, dict) or not isinstance(changed.setdefault(section, {}), dict):
            raise RecipeError(f"--set {short(override)}: {short(section)} is not a section of the recipe")
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
        value, Dumper=_Dumper, default_style=style, default_flow_style=True, width=float("inf"), allow_unicode=True
    )
    return text.removesuffix("...\n").strip()


def _takes_text(section: str, field: str) -> bool:
    from moco_accel.recipe import Recipe  # which imports this module

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
            quoted = _load(text)
            return quoted if isinstance(quoted, str) else text
    return text


def _read_yaml(text: str, override: str) -> Any:
    try:
        return _load(text)
    except (yaml.YAMLError, ValueError):
        raise RecipeError(
            f"--set {short(override)}: {short(text)} is not a YAML value; e.g. 1e-4, true, [1, 2], ['a: b', c] work"
        ) from None


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
    return part if part.isprintable() and len(part) <= _LONGEST_NAME else short(part)


def short(value: object, limit: int = _LONGEST_NAME) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
