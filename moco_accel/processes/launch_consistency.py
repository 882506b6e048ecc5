"""Check that every rank was launched with the same recipe and code; report the ranks that differ.

A rank that differs would train other weights without notice, or send tensors that no other rank waits for.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from moco_accel.common.versions import library_versions
from moco_accel.processes.diagnosis import describe_rank
from moco_accel.recipe.launch_command import LaunchOptions
from moco_accel.recipe.schema import Recipe

LaunchInfo = dict[str, Any]
"""What ranks compare, as JSON: `host`, `address`, `mistake`, `asked` (recipe and options) and `versions`."""

_OWN_FILES = "moco_accel/*.py"
# every rank computes its own copy of the weights with these, so they must be the same
_COMPUTE = ("moco-accel", _OWN_FILES, "torch", "cuda", "torchvision", "transformers", "accelerate")
_MAX_NAMED = 3


def launch_info(recipe: Recipe, options: LaunchOptions, address: str, mistake: Exception | None) -> LaunchInfo:
    """Collect what ranks compare at startup.

    Args:
        address: The rendezvous, as a name or number.
        mistake: Why this rank cannot start; None if it can.
    """
    fields = {
        f"{section}.{field}" if field else section: value
        for section, content in recipe.model_dump(mode="json").items()
        for field, value in (content if isinstance(content, dict) else {"": content}).items()
    }
    return {
        "host": socket.gethostname(),
        "address": _resolve(address),
        "mistake": str(mistake) if mistake else None,
        "asked": fields | options.flags(),
        "versions": library_versions() | {_OWN_FILES: _checksum_own_files()},
    }


def _resolve(address: str) -> str | None:
    with suppress(OSError):
        return socket.gethostbyname(address)
    return None


def _checksum_own_files() -> str:
    """Two checkouts of one version may differ."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def find_inconsistency(infos: dict[int, LaunchInfo]) -> str:
    """Return why these ranks, among them rank 0, cannot train together; empty if they can."""
    for rank, info in infos.items():
        if info["mistake"]:
            return f"{_name(rank, infos)} cannot start: {info['mistake']}"
    if line := _compare_addresses(infos):
        return line
    if line := _compare("asked", list(infos[0]["asked"]), infos):
        return f"{line}; all ranks need one recipe and the same flags: the same file and command on each node"
    if line := _compare("versions", _versions_that_compute(infos[0]), infos):
        return f"{line}; all ranks need the same versions, or their weights drift apart"
    return ""


def _compare_addresses(infos: dict[int, LaunchInfo]) -> str:
    """Many hosts resolve their own name to 127.0.1.1, where no other host can reach them."""
    first, *others = (info["address"] for info in infos.values())
    reachable = [address for address in others if address and not ipaddress.ip_address(address).is_loopback]
    if not first or not reachable or not ipaddress.ip_address(first).is_loopback:
        return ""
    return (
        f"MASTER_ADDR is {first} on {_name(0, infos)} and {reachable[0]} on other hosts; MASTER_ADDR={reachable[0]} on "
        "all nodes works"
    )


def find_harmless_difference(infos: dict[int, LaunchInfo]) -> str:
    """Return a warning about versions that may differ: libraries that read and augment tiles. Empty if none differ."""
    others = [name for name in infos[0]["versions"] if name not in _versions_that_compute(infos[0])]
    line = _compare("versions", others, infos)
    return f"{line}; the run continues, because none of these computes weights" if line else ""


def _versions_that_compute(first: LaunchInfo) -> list[str]:
    is_8bit = str(first["asked"].get("optimizer.name")).endswith("8bit")
    return [*_COMPUTE, "bitsandbytes"] if is_8bit else [*_COMPUTE]


def _compare(part: str, names: list[str], infos: dict[int, LaunchInfo]) -> str:
    first = infos[0][part]
    ranks = [rank for rank, info in infos.items() if any(info[part].get(name) != first[name] for name in names)]
    if not ranks:
        return ""
    theirs = infos[ranks[0]][part]
    different = [name for name in names if theirs.get(name) != first[name]]
    values = ", ".join(
        f"{name}={theirs.get(name)} where {_name(0, infos)} has {first[name]}" for name in different[:_MAX_NAMED]
    )
    more = f" and {len(different) - _MAX_NAMED} more" if len(different) > _MAX_NAMED else ""
    others = f" ({describe_ranks(ranks[1:])} too)" if ranks[1:] else ""
    return f"{_name(ranks[0], infos)} has {values}{more}{others}"


def _name(rank: int, infos: dict[int, LaunchInfo]) -> str:
    return describe_rank(rank, infos[rank]["host"], {info["host"] for info in infos.values()})


def describe_ranks(ranks: list[int]) -> str:
    """List ranks by number, and only count those after the third."""
    named = ", ".join(str(rank) for rank in ranks[:_MAX_NAMED])
    more = f" and {len(ranks) - _MAX_NAMED} more" if len(ranks) > _MAX_NAMED else ""
    return f"rank {named}{more}" if len(ranks) == 1 else f"ranks {named}{more}"
