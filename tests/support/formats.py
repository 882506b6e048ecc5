"""The keys and types in the files of a run: what a later version must still read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def layout(value: Any) -> Any:
    """Return the keys of nested mappings, with the type of each leaf."""
    if isinstance(value, dict):
        return {key: layout(inner) for key, inner in sorted(value.items())}
    return [layout(inner) for inner in value[:1]] if isinstance(value, list) else type(value).__name__


def tensor_names(path: Path) -> list[str]:
    """Return the names in a safetensors file; transformer blocks count as one."""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return sorted({re.sub(r"layers\.\d+\.", "layers.N.", name) for name in header})


def formats_of(run: Path) -> dict[str, Any]:
    """Return the files of a finished run and of its last checkpoint, with their keys."""
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    return {
        "files of a run": sorted(path.name for path in run.iterdir()),
        "files of a checkpoint": sorted(path.name for path in checkpoint.iterdir()),
        **{path.name: tensor_names(path) for path in sorted(checkpoint.glob("*.safetensors"))},
        **{name: layout(json.loads((checkpoint / name).read_text())) for name in ("manifest.json", "state.json")},
        **{
            name: layout(json.loads((run / name).read_text().splitlines()[-1]))
            for name in ("metrics.jsonl", "evaluations.jsonl")
        },
        "summary.json": layout(json.loads((run / "summary.json").read_text())),
    }
