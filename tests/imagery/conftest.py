"""Imagery that tests of `moco-data build` share."""

import pytest
from support.builds import OPTIONS, build, contents, save


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """40 pictures in two classes, one of them damaged: 156 tiles in five shards."""
    root = tmp_path_factory.mktemp("source")
    for number in range(40):
        save(root / f"class{number % 2}/{number:02d}.png", 200, 200, seed=number)
    damaged = root / "class0/02.png"
    damaged.write_bytes(damaged.read_bytes()[:50_000])
    return root


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """What a build that nobody interrupts leaves."""
    out = tmp_path_factory.mktemp("whole") / "out"
    build(source, out, **OPTIONS)
    found = contents(out)
    assert [name for name in found if name.startswith("tiles-")] == [
        f"tiles-{i:05d}-of-00005.parquet" for i in range(5)
    ]
    return found
