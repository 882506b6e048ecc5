"""Random folders of files of known kinds: the tiles read are those that an independent count expects, or a refusal."""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.file_trees import SIDE, TAR_TREES, TREES, Tree, make_tree, number_of, picture

from moco_accel.common.errors import UserError
from moco_accel.imagery.build import build_tiles
from moco_accel.imagery.options import BuildOptions
from moco_accel.images.headers import DamagedTile
from moco_accel.recipe.data_sections import Data
from moco_accel.tiles.tiles import open_tiles

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def refusal(do: Callable[[], object]) -> str | None:
    """Return the message with which `do` refuses, which is one line; None if it does not refuse."""
    try:
        do()
    except UserError as error:
        return str(error)
    return None


def check_source(tree: Tree, source: Path) -> None:
    """Compare what a source yields with what is expected of the tree, without a split and with one."""
    refused = refusal(lambda: open_tiles(str(source), Data(source=str(source)), 3))
    assert bool(refused) == (tree.refusal or tree.has_splits), refused
    if not refused:
        assert read_all(str(source), None) == (tree.expected, tree.damaged)
        return
    assert "\n" not in refused
    event("refused")
    if tree.has_splits and not tree.refusal:
        assert "several splits" in refused
        for split, numbers in tree.of_split.items():
            expected = Counter({number: count for number, count in numbers.items() if number >= 0})
            if expected:
                assert read_all(str(source), split) == (expected, numbers[-1])
            else:  # a split of damaged files only
                assert refusal(lambda split=split: read_all(str(source), split))


def read_all(source: str, split: str | None) -> tuple[Counter[int], int]:
    """Return how often each picture is read, and the number of damaged tiles."""
    tiles = open_tiles(source, Data(source=source, split=split), 3)
    found: Counter[int] = Counter()
    damaged = 0
    for index in range(len(tiles)):
        try:
            found[number_of(tiles[index])] += 1
        except DamagedTile:
            damaged += 1
    return found, damaged


def check_build(tree: Tree, out: Path) -> None:
    options = BuildOptions(tile_size=SIDE, max_cloud=1.0)
    refused = refusal(lambda: build_tiles(tree.root, out, options, 1, False, lambda *_: None))
    assert bool(refused) == (tree.refusal or tree.has_splits), refused
    if refused:
        assert "\n" not in refused
        return
    tiles = open_tiles(str(out), Data(source=str(out)), 3)
    assert Counter(number_of(tiles[index]) for index in range(len(tiles))) == tree.expected


def check_tree(parts, what: str) -> None:
    """Check one tree as a folder, packed in a tar, or built."""
    with tempfile.TemporaryDirectory() as folder:
        tree = make_tree(Path(folder), parts)
        if what == "tar":
            with tarfile.open(Path(folder) / "tiles.tar", "w") as file:
                file.add(tree.root, ".")
            check_source(tree, Path(folder) / "tiles.tar")
        elif what == "build":
            check_build(tree, Path(folder) / "built")
        else:
            check_source(tree, tree.root)


COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": True}


WHAT = {"folder": (TREES, 60), "tar": (TAR_TREES, 60), "build": (TREES, 20)}


def fuzz(what: str, count: int, **options) -> None:
    @settings(max_examples=count, **COMMON | options)
    @given(WHAT[what][0])
    def check(parts) -> None:
        check_tree(parts, what)

    check()


@pytest.mark.parametrize("what", WHAT)
def test_pictures_and_nothing_else_are_read(what: str) -> None:
    fuzz(what, WHAT[what][1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("what", WHAT)
def test_pictures_and_nothing_else_are_read_of_two_thousand_trees(what: str) -> None:
    fuzz(what, 2000, derandomize=False)


SPLITS = ("train", "test", "validation")
SHARD_JUNK = ("cache-0123.arrow", "README.md", "_SUCCESS", ".part.crc", "tmpabc", "sheet.png")


@st.composite
def shard_folders(draw):
    splits = draw(st.lists(st.sampled_from(SPLITS), max_size=3, unique=True))
    shards = {split: draw(st.integers(1, 3)) for split in splits} or {"": draw(st.integers(1, 3))}
    return shards, draw(st.lists(st.sampled_from(SHARD_JUNK), max_size=3, unique=True)), draw(st.booleans())


def write_shard_folder(folder: Path, shards: dict[str, int], junk: list[str], lose_one: bool) -> dict[str, list[int]]:
    """Write shards of two tiles; return the tiles' numbers by split."""
    folder.mkdir()
    number, numbers = 0, {}
    for split, count in shards.items():
        numbers[split] = []
        for shard in range(count):
            rows = []
            for _ in range(2):
                number += 1
                file = io.BytesIO()
                Image.fromarray(picture(number)).save(file, "png")
                rows.append({"bytes": file.getvalue(), "path": None})
                numbers[split].append(number)
            table = datasets.Dataset.from_dict({"image": rows}, datasets.Features({"image": datasets.Image()}))
            table.to_parquet(folder / f"{split or 'part'}-{shard:05}-of-{count:05}.parquet")
    if lose_one:
        next(folder.glob("*.parquet")).unlink()
    for name in junk:
        (folder / name).write_bytes(b"junk")
    return numbers


@settings(max_examples=30, **COMMON)
@given(shard_folders(), st.sampled_from([None, *SPLITS]))
def test_a_folder_of_shards_yields_the_split_that_was_asked_for(layout, split) -> None:
    shards, junk, lose_one = layout
    folder = Path(tempfile.mkdtemp())
    try:
        numbers = write_shard_folder(folder / "shards", shards, junk, lose_one)
        names = [name for name in numbers if name]
        wanted = split or (names[0] if len(names) == 1 else "")
        data = Data(source=str(folder / "shards"), split=split, streaming=True)
        is_clear = wanted in numbers or not names
        refused = refusal(lambda: open_tiles(data.source, data, 3))
        assert not refused or lose_one or not is_clear, refused
        if refused:
            assert "\n" not in refused
            return
        assert is_clear  # a lost shard is of another split
        tiles = open_tiles(data.source, data, 3)
        found = sorted(number_of(tiles[index]) for index in range(len(tiles)))
        assert found == numbers[wanted if names else ""]
    finally:
        shutil.rmtree(folder)
