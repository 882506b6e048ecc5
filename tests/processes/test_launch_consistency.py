"""Ranks that differ in recipe, flags, versions or code, or that resolve the address differently."""

from __future__ import annotations

import json
from typing import Any

from support.recipes import small_recipe

from moco_accel.processes.launch_consistency import (
    LaunchInfo,
    describe_ranks,
    find_harmless_difference,
    find_inconsistency,
    launch_info,
)
from moco_accel.recipe.launch_command import LaunchOptions


def info(host: str = "a", mistake: str | None = None, **changed: Any) -> LaunchInfo:
    """Return a rank's launch info with changed fields or versions; `__` stands for a dot."""
    found = launch_info(small_recipe(), LaunchOptions(), "localhost", None) | {"host": host, "mistake": mistake}
    for part in ("asked", "versions"):
        known = {name.replace("__", "."): value for name, value in changed.items()}
        found[part] = found[part] | {name: value for name, value in known.items() if name in found[part]}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def test_ranks_that_differ_are_named() -> None:
    assert find_inconsistency({0: info(), 1: info()}) == ""
    assert find_harmless_difference({0: info(), 1: info()}) == ""
    lr = info()["asked"]["optimizer.lr"]
    ranks = {0: info(), 1: info(), 2: info("b", optimizer__lr=0.5), 3: info("b", optimizer__lr=0.6)}
    assert find_inconsistency(ranks) == (
        f"rank 2 on b has optimizer.lr=0.5 where rank 0 on a has {lr} (rank 3 too); all ranks need one recipe and the "
        "same flags: the same file and command on each node"
    )
    many = info(run__seed=1, moco__temperature=0.1, batch__micro_batch_size=1, schedule__epochs=7, data__source=None)
    assert "and 2 more; all" in find_inconsistency({0: info(), 1: many})
    line = find_inconsistency({0: info(), 1: info("b", mistake="no disk")})
    assert line == "rank 1 on b cannot start: no disk"
    assert describe_ranks([4]) == "rank 4"
    assert describe_ranks([1, 2, 3, 4, 5]) == "ranks 1, 2, 3 and 2 more"


def test_versions_are_compared() -> None:
    line = find_inconsistency({0: info(), 1: info(torch="2.13.0")})
    assert line.startswith("rank 1 has torch=2.13.0 where rank 0 has 2.")
    other_code = info() | {"versions": info()["versions"] | {"moco_accel/*.py": "0123456789ab"}}
    line = find_inconsistency({0: info(), 1: other_code})
    assert "rank 1 has moco_accel/*.py=0123456789ab where rank 0 has " in line
    assert find_inconsistency({0: info(), 1: info(bitsandbytes="absent")}) == ""  # plain AdamW does not need it
    eight_bit = {"optimizer__name": "adamw_8bit"}
    line = find_inconsistency({0: info(**eight_bit), 1: info(bitsandbytes="absent", **eight_bit)})
    assert "bitsandbytes=absent" in line
    line = find_harmless_difference({0: info(), 1: info(numpy="1.0")})
    assert line.startswith("rank 1 has numpy=1.0 where rank 0 has ")


def test_flags_are_compared() -> None:
    resumed = info() | {"asked": info()["asked"] | {"--resume": True}}
    line = find_inconsistency({0: info(), 1: resumed})
    assert line.startswith("rank 1 has --resume=True where rank 0 has False; all")


def test_a_first_host_that_resolves_its_name_to_itself() -> None:
    loopback, known, unknown = (
        info(host) | {"address": a} for host, a in (("a", "127.0.1.1"), ("b", "10.0.0.5"), ("c", None))
    )
    assert find_inconsistency({0: loopback, 1: unknown, 2: known}) == (
        "MASTER_ADDR is 127.0.1.1 on rank 0 on a and 10.0.0.5 on other hosts; MASTER_ADDR=10.0.0.5 on all nodes works"
    )
    for fine in ((known, known), (loopback, loopback), (known, loopback), (unknown, known), (loopback, unknown)):
        assert find_inconsistency(dict(enumerate(fine))) == ""
