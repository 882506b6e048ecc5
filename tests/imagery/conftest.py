"""Fixtures for the tests of `moco-data build`."""

import pytest
from support.builds import OPTIONS, build, file_contents, save_picture

from moco_accel.common.errors import UserError


@pytest.fixture
def build_error(tmp_path):
    """Run a build that must fail before a shard is complete; return its message."""

    def fail(source, **options):
        with pytest.raises(UserError) as caught:
            build(source, tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out/.build").exists()
        return str(caught.value)

    return fail


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """40 pictures in two classes, one of them damaged: 156 tiles in five shards."""
    root = tmp_path_factory.mktemp("source")
    for number in range(40):
        save_picture(root / f"class{number % 2}/{number:02d}.png", 200, 200, seed=number)
    damaged = root / "class0/02.png"
    damaged.write_bytes(damaged.read_bytes()[:50_000])
    return root


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Files of an uninterrupted build."""
    out = tmp_path_factory.mktemp("whole") / "out"
    build(source, out, **OPTIONS)
    files = file_contents(out)
    assert [name for name in files if name.startswith("tiles-")] == [
        f"tiles-{i:05d}-of-00005.parquet" for i in range(5)
    ]
    return files
