"""Whether all processes of a launch were asked for the same, and compute it with the same code; who was not, in a line.

A process that differs trains other weights than the others without a word, or sends tensors that no other waits for.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from moco_accel.common.versions import library_versions
from moco_accel.recipe.launch_command import Asked
from moco_accel.recipe.schema import Recipe

Facts = dict[str, Any]
"""Of one process, as JSON has it: `host`, `address`, `mistake`, `asked` and `versions`; see `facts`."""

_OWN_FILES = "moco_accel/*.py"
# each process computes its own copy of the weights with these; the others read tiles, whose like no other has
_COMPUTE = ("moco-accel", _OWN_FILES, "torch", "cuda", "torchvision", "transformers", "accelerate")
_COMPUTE_8BIT = "bitsandbytes"
_MOST_NAMED = 3


def facts(recipe: Recipe, asked: Asked, address: str, mistake: Exception | None) -> Facts:
    """Of this process. `address`: where all meet, as a name or number; `mistake`: why this one will end at once."""
    fields = {
        f"{section}.{field}" if field else section: value
        for section, content in recipe.model_dump(mode="json").items()
        for field, value in (content if isinstance(content, dict) else {"": content}).items()
    }
    return {
        "host": socket.gethostname(),
        "address": _resolved(address),
        "mistake": str(mistake) if mistake else None,
        "asked": fields | asked.flags(),
        "versions": library_versions() | {_OWN_FILES: _own_files()},
    }


def _resolved(address: str) -> str | None:
    with suppress(OSError):
        return socket.gethostbyname(address)
    return None


def _own_files() -> str:
    """A checksum: two checkouts of one version may differ."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def unlike(all_facts: dict[int, Facts]) -> str:
    """Why these processes, by rank and with the first among them, cannot train together; empty if they can."""
    for rank, found in all_facts.items():
        if found["mistake"]:
            return f"{_who(rank, all_facts)} cannot begin: {found['mistake']}"
    if line := _unlike_addresses(all_facts):
        return line
    if line := _differing("asked", list(all_facts[0]["asked"]), all_facts):
        return f"{line}; all ranks need one recipe, and the same flags: the same file and command on each node"
    if line := _differing("versions", _must_agree(all_facts[0]), all_facts):
        return f"{line}; all ranks need the same versions, or their weights drift apart: install them alike"
    return ""


def _unlike_addresses(all_facts: dict[int, Facts]) -> str:
    """Many a host takes its own name for 127.0.1.1, where nobody else can reach it."""
    first, *others = (found["address"] for found in all_facts.values())
    reached = [address for address in others if address and not ipaddress.ip_address(address).is_loopback]
    if not first or not reached or not ipaddress.ip_address(first).is_loopback:
        return ""
    return (
        f"MASTER_ADDR is {first} to {_who(0, all_facts)} itself and {reached[0]} to others; {reached[0]} in place of "
        "the name, on all nodes, works"
    )


def warnings(all_facts: dict[int, Facts]) -> list[str]:
    """What differs and may: by it each reads and augments its own tiles."""
    others = [name for name in all_facts[0]["versions"] if name not in _must_agree(all_facts[0])]
    line = _differing("versions", others, all_facts)
    return [f"{line}; the run goes on, for none of these computes weights"] if line else []


def _must_agree(first: Facts) -> list[str]:
    return [*_COMPUTE, *([_COMPUTE_8BIT] if str(first["asked"].get("optimizer.name")).endswith("8bit") else [])]


def _differing(what: str, names: list[str], all_facts: dict[int, Facts]) -> str:
    first = all_facts[0][what]
    ranks = [rank for rank, found in all_facts.items() if any(found[what].get(n) != first[n] for n in names)]
    if not ranks:
        return ""
    theirs, who = all_facts[ranks[0]][what], _who(ranks[0], all_facts)
    unlike_names = [name for name in names if theirs.get(name) != first[name]]
    said = ", ".join(
        f"{n}={theirs.get(n)} where {_who(0, all_facts)} has {first[n]}" for n in unlike_names[:_MOST_NAMED]
    )
    more = f" and {len(unlike_names) - _MOST_NAMED} more" if len(unlike_names) > _MOST_NAMED else ""
    others = f" ({ranks_in_words(ranks[1:])} too)" if ranks[1:] else ""
    return f"{who} has {said}{more}{others}"


def _who(rank: int, all_facts: dict[int, Facts]) -> str:
    several = len({found["host"] for found in all_facts.values()}) > 1
    return f"rank {rank} on {all_facts[rank]['host']}" if several else f"rank {rank}"


def ranks_in_words(ranks: list[int]) -> str:
    """Not all of a thousand."""
    named = ", ".join(str(rank) for rank in ranks[:_MOST_NAMED])
    more = f" and {len(ranks) - _MOST_NAMED} more" if len(ranks) > _MOST_NAMED else ""
    return f"rank {named}{more}" if len(ranks) == 1 else f"ranks {named}{more}"
