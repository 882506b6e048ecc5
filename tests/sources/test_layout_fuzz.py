"""Random folders of files of known kinds: the tiles read are those that an independent count expects, or a refusal."""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from moco_accel.common.errors import UserError
from moco_accel.imagery.build import build_tiles
from moco_accel.imagery.options import BuildOptions
from moco_accel.images.headers import DamagedTile
from moco_accel.recipe.data_sections import Data
from moco_accel.tiles.tiles import open_tiles

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SIDE = 16
FOLDERS = ("", "a", "b/c", "images", "train/forest", "2020.01", "train/sea", "test/sea")
HIDDEN = (".ipynb_checkpoints", "a/.cache", "__MACOSX", "images/__MACOSX", "@eaDir")
MASK_FOLDERS = ("masks", "labels", "a/mask", "annotations")
COLOUR_FOLDERS = ("gts_x", "classes", "a/colours", "semantic/2020")
GREY_FOLDERS = ("sar", "grey/1", "pan")
SIDE_FILES = ("readme.txt", "a.json", "images/x.xml", "x.png.aux.xml", "t.csv", "Thumbs.db", "a/y.pgw", "LICENSE")
QUICK, LONG = 60, 2000


@dataclass
class Tree:
    """A folder under construction, and what should be read of it.

    Attributes:
        expected: Number of times that each picture should be read, by its number.
        of_split: The pictures and damaged files below train/ and test/.
        damaged: Files that look like pictures and are none.
        refusal: True if two kinds of imagery compete.
    """

    root: Path
    outside: Path
    expected: Counter[int] = field(default_factory=Counter)
    of_split: dict[str, Counter[int]] = field(default_factory=dict)
    damaged: int = 0
    refusal: bool = False
    files: int = 0

    @property
    def has_splits(self) -> bool:
        return len(self.of_split) > 1

    def next_path(self, folder: str, ending: str) -> Path:
        self.files += 1
        path = self.root / folder / f"tile{self.files}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def picture(number: int) -> np.ndarray:
    """Return a colourful picture [SIDE, SIDE, 3] that holds its number in the first pixel."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[0, 0] = number >> 8, number & 255, 77
    return pixels


def number_of(tile) -> int:
    return int(tile[0, 0, 0]) << 8 | int(tile[1, 0, 0])


def add_picture(tree: Tree, path: Path, read: bool = True) -> None:
    tree.files += 1
    Image.fromarray(picture(tree.files)).save(path)
    if read:
        tree.expected[tree.files] += 1
        count_split(tree, path, tree.files)


def count_split(tree: Tree, path: Path, number: int) -> None:
    top = path.relative_to(tree.root).parts[0] if tree.root in path.parents else ""
    if top in ("train", "test"):
        tree.of_split.setdefault(top, Counter())[number] += 1


def add_pictures(tree: Tree, folder: str, count: int, ending: str) -> None:
    for _ in range(count):
        add_picture(tree, tree.next_path(folder, ending))


def add_masks(tree: Tree, folder: str, count: int) -> None:
    for _ in range(count):
        values = np.random.default_rng(tree.files).integers(0, 3, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(values).save(tree.next_path(folder, ".png"))


def add_masks_beside(tree: Tree, folder: str, count: int) -> None:
    for _ in range(count):
        path = tree.next_path(folder, ".png")
        add_picture(tree, path)
        values = np.random.default_rng(tree.files).integers(0, 2, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(values).save(path.with_name(f"{path.stem}_mask.png"))


def add_colour_maps(tree: Tree, folder: str, count: int) -> None:
    colours = np.array([[255, 0, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
    for _ in range(count):
        values = np.random.default_rng(tree.files).integers(0, 3, (SIDE, SIDE))
        Image.fromarray(colours[values]).save(tree.next_path(folder, ".png"))


def add_quick_looks(tree: Tree, folder: str, count: int) -> None:
    for _ in range(count):
        path = tree.next_path(folder, ".png")
        add_picture(tree, path)
        Image.fromarray(picture(0)[::2, ::2]).save(path.with_name(f"{path.stem}_thumb.png"))


def add_grey(tree: Tree, folder: str, count: int) -> None:
    for _ in range(count):
        Image.fromarray(picture(tree.files)[..., 1]).save(tree.next_path(folder, ".png"))
    tree.refusal = True


def add_hidden(tree: Tree, folder: str, count: int) -> None:
    for _ in range(count):
        add_picture(tree, tree.next_path(folder, ".png"), read=False)


def add_apple_double(tree: Tree, folder: str, count: int) -> None:
    for _ in range(count):
        path = tree.next_path(folder, ".png")
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7" + bytes(60))


def add_side_file(tree: Tree, name: str) -> None:
    path = tree.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text")


def add_link(tree: Tree, name: str, count: int) -> None:
    target = tree.outside / f"target{tree.files}"
    target.mkdir(parents=True)
    for number in range(count):
        add_picture(tree, target / f"{number}.png")
    link = tree.root / f"{name}{tree.files}"
    link.symlink_to(target)


def add_loop(tree: Tree, folder: str) -> None:
    parent = tree.root / folder
    parent.mkdir(parents=True, exist_ok=True)
    link = parent / "loop"
    if not link.exists():
        link.symlink_to(tree.root)


def add_empty(tree: Tree, folder: str) -> None:
    path = tree.next_path(folder, ".png")
    path.write_bytes(b"")
    count_split(tree, path, -1)
    tree.damaged += 1


def add_other_kind(tree: Tree, folder: str, count: int) -> None:
    """Add TIFFs of four named 16-bit bands with many values."""
    for _ in range(count):
        path = tree.next_path(folder, ".tif")
        pixels = np.random.default_rng(tree.files).integers(1, 9000, (4, SIDE, SIDE)).astype(np.uint16)
        with rasterio.open(path, "w", driver="GTiff", width=SIDE, height=SIDE, count=4, dtype="uint16") as file:
            file.write(pixels)
            file.descriptions = ("B2", "B3", "B4", "B8")
    tree.refusal = True


COUNT = st.integers(1, 4)
ENDINGS = st.sampled_from([".png", ".PNG", ".tif", ".tiff"])
PARTS_OF_ALL = (
    st.tuples(st.just(add_pictures), st.sampled_from(FOLDERS), COUNT, ENDINGS),
    st.tuples(st.just(add_masks), st.sampled_from(MASK_FOLDERS), COUNT),
    st.tuples(st.just(add_masks_beside), st.sampled_from(FOLDERS), COUNT),
    st.tuples(st.just(add_colour_maps), st.sampled_from(COLOUR_FOLDERS), COUNT),
    st.tuples(st.just(add_quick_looks), st.sampled_from(FOLDERS), COUNT),
    st.tuples(st.just(add_hidden), st.sampled_from(HIDDEN), COUNT),
    st.tuples(st.just(add_apple_double), st.sampled_from(FOLDERS), COUNT),
    st.tuples(st.just(add_side_file), st.sampled_from(SIDE_FILES)),
    st.tuples(st.just(add_empty), st.sampled_from(FOLDERS)),
    st.tuples(st.just(add_other_kind), st.sampled_from(FOLDERS), COUNT),
    st.tuples(st.just(add_grey), st.sampled_from(GREY_FOLDERS), COUNT),
)
LINKS = (
    st.tuples(st.just(add_link), st.sampled_from(["link", "a", "z"]), COUNT),
    st.tuples(st.just(add_loop), st.sampled_from(FOLDERS)),
)
PARTS = st.one_of(*PARTS_OF_ALL, *LINKS)
TAR_TREES = st.lists(st.one_of(*PARTS_OF_ALL), max_size=5)
TREES = st.lists(PARTS, max_size=5)


def make_tree(folder: Path, parts) -> Tree:
    """Write a tree with at least four pictures: more than its damaged files can hide."""
    tree = Tree(folder / "source", folder / "outside")
    add_pictures(tree, "images", 4, ".png")
    for add, *arguments in parts:
        add(tree, *arguments)
    return tree


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


@settings(max_examples=QUICK, **COMMON)
@given(TREES)
def test_a_folder_yields_its_pictures_and_nothing_else(parts) -> None:
    check_tree(parts, "folder")


@settings(max_examples=QUICK, **COMMON)
@given(TAR_TREES)
def test_a_tar_yields_its_pictures_and_nothing_else(parts) -> None:
    check_tree(parts, "tar")


@settings(max_examples=QUICK // 3, **COMMON)
@given(TREES)
def test_a_build_yields_the_pictures_of_a_folder_and_nothing_else(parts) -> None:
    check_tree(parts, "build")


RANDOM = settings(max_examples=LONG, **COMMON | {"derandomize": False})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@RANDOM
@given(TREES)
def test_two_thousand_folders_yield_their_pictures_and_nothing_else(parts) -> None:
    check_tree(parts, "folder")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@RANDOM
@given(TAR_TREES)
def test_two_thousand_tars_yield_their_pictures_and_nothing_else(parts) -> None:
    check_tree(parts, "tar")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@RANDOM
@given(TREES)
def test_two_thousand_builds_yield_the_pictures_and_nothing_else(parts) -> None:
    check_tree(parts, "build")


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
