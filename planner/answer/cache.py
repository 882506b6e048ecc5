"""Answers remembered on disk, so that the same question is answered without torch and at once.

The key is everything an answer depends on: the code of trainer and planner, the versions of the libraries that they
trace, what was measured, the question, the recipe and the card.
"""

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

import moco_accel
from moco_accel.recipe.schema import Recipe
from planner.cards.devices import Card
from planner.memory.candidate import Finding
from planner.memory.evidence import all_rows, cache_folder

_LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "bitsandbytes")
Answer = TypeVar("Answer", bound=Finding)


def answered(function: str, kind: type[Answer], recipe: Recipe, card: Card) -> Answer:
    """What `function` ("planner.answer.search.best", say) says of a recipe and a card, now or when it was asked before.

    It is imported, and torch with it, only if it must be asked. An answer that cannot be read is computed again; where
    none can be written, that only costs time.
    """
    asked = f"{_traced_world()} {all_rows()} {function} {recipe.model_dump_json(exclude={'planned'})} {asdict(card)}"
    path = cache_folder() / "plans" / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):  # pydantic's and a decoder's errors are ValueErrors
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    module, _, name = function.rpartition(".")
    answer: Answer = getattr(import_module(module), name)(recipe, card)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(answer.model_dump_json(), encoding="utf-8")
        partial.replace(path)
    return answer


@cache
def _traced_world() -> str:
    """A fingerprint of the code and the libraries."""
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
