"""Recipe text: YAML in and out."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from moco_accel.common.errors import UserError, short_repr

MAX_RECIPE_BYTES = 1 << 18
_MAX_NODES, _MAX_LEVELS = 4000, 20  # of YAML; a recipe has about 200 nodes in 3 levels


class _Loader(yaml.SafeLoader):
    """Loads plain data of YAML 1.2: `1e-4` is a number (PyYAML: a string), `no` is a string (PyYAML: false).

    Refuses duplicate keys, and anchors and tags, with which a short text can expand to more than memory holds.
    """

    _nodes = _levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._nodes, self._levels = self._nodes + 1, self._levels + 1
        if self._nodes > _MAX_NODES or self._levels > _MAX_LEVELS:
            raise yaml.YAMLError(f"more than {_MAX_NODES} values, or deeper than {_MAX_LEVELS} levels")
        if event.anchor or getattr(event, "tag", None):
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: &anchors, *aliases and !tags are not supported")
        node = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        self._levels -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for (_, key), count in keys.items():
            if count > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: {short_repr(key)} is given {count} times; once works")
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))


class RecipeDumper(yaml.SafeDumper):
    """Writes whole floats without a fraction (40, not 40.0) and quotes text that YAML 1.1 or 1.2 would convert."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":null")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern, _first in (
    ("bool", r"^(?i:true|false)$", "tTfF"),
    ("float", r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$", "-+0123456789."),
    ("int", r"^[-+]?\d+(_\d+)*$", "-+0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)

RecipeDumper.yaml_implicit_resolvers = {
    first: _Loader.yaml_implicit_resolvers.get(first, []) + yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])
    for first in {*_Loader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
}


def _represent_float(dumper: RecipeDumper, value: float) -> yaml.Node:
    return dumper.represent_int(int(value)) if value.is_integer() else yaml.SafeDumper.represent_float(dumper, value)


RecipeDumper.add_representer(float, _represent_float)


def load_yaml(text: str) -> Any:
    """Parse plain data of YAML 1.2; raise yaml.YAMLError or ValueError if `_Loader` refuses it."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def read_yaml(path: Path) -> object:
    """Read a recipe's file as plain data.

    Raises:
        UserError: If the file does not exist, is larger than MAX_RECIPE_BYTES, or is not plain YAML.
    """
    if not path.is_file():
        folder = path.parent if path.parent != Path() else Path("recipes")
        near = sorted(str(p) for p in folder.glob("*.yaml"))
        raise UserError(
            f"--recipe={path} does not exist; "
            + (f"there are: {', '.join(near)}" if near else "moco-plan --gpus 2 --vram 8 writes one")
        )
    with path.open("rb") as file:
        raw = file.read(MAX_RECIPE_BYTES + 1)
    if len(raw) > MAX_RECIPE_BYTES:
        raise UserError(f"--recipe={path} has {path.stat().st_size} bytes; a recipe has at most {MAX_RECIPE_BYTES}")
    try:
        return load_yaml(raw.decode())
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--recipe={path} is not a recipe in YAML: {' '.join(str(error).split())}") from None


def dump_yaml(fields: dict[str, Any], comment: str) -> str:
    """Return YAML with one block per section, in the order of `fields`, below `comment` as `#` lines."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return head + yaml.dump(
        fields, Dumper=RecipeDumper, sort_keys=False, width=110, default_flow_style=None, allow_unicode=True
    )
