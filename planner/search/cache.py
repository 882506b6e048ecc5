"""Cache results on disk, so that a repeated plan needs no torch."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

import moco_accel
from moco_accel.recipe.schema import Recipe
from planner.cards.card import Card
from planner.evidence.records import cache_folder, load_measurements

_LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "bitsandbytes")
Result = TypeVar("Result")


def cached(function: str, kind: type[Result], recipe: Recipe, card: Card) -> Result:
    """Return the result of the function with this dotted name, from the cache if nothing it depends on has changed.

    The function's module, and torch with it, is imported only on a miss. A result that cannot be read is computed
    again; one that cannot be written is not cached.
    """
    call = f"{function} {recipe.model_dump_json(exclude={'planned'})} {asdict(card)}"
    key = hashlib.sha256(f"{_code_fingerprint()} {load_measurements()} {call}".encode()).hexdigest()
    path = cache_folder() / "plans" / f"{key[:32]}.json"
    adapter = TypeAdapter(kind)
    with suppress(OSError, ValueError):  # errors of pydantic and of decoding are ValueErrors
        return adapter.validate_json(path.read_text(encoding="utf-8"))
    module, _, name = function.rpartition(".")
    result: Result = getattr(import_module(module), name)(recipe, card)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(adapter.dump_json(result))
        partial.replace(path)
    return result


@cache
def _code_fingerprint() -> str:
    """Return a hash of the code, and the versions of the libraries."""
    digest = hashlib.sha256()
    for package in (Path(__file__).parents[1], Path(moco_accel.__file__).parent):
        for path in sorted(package.rglob("*.py")):
            digest.update(path.read_bytes())
    return f"{digest.hexdigest()} {[_version(name) for name in _LIBRARIES]}"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"
