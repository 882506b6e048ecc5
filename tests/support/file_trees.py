"""Random folders of files of known kinds, and how often each of their pictures should be read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
from hypothesis import strategies as st
from PIL import Image

SIDE = 16
FOLDERS = ("", "a", "b/c", "images", "train/forest", "2020.01", "train/sea", "test/sea")
HIDDEN = (".ipynb_checkpoints", "a/.cache", "__MACOSX", "images/__MACOSX", "@eaDir")
MASK_FOLDERS = ("masks", "labels", "a/mask", "annotations")
COLOUR_FOLDERS = ("gts_x", "classes", "a/colours", "semantic/2020")
GREY_FOLDERS = ("sar", "grey/1", "pan")
SIDE_FILES = ("readme.txt", "a.json", "images/x.xml", "x.png.aux.xml", "t.csv", "Thumbs.db", "a/y.pgw", "LICENSE")


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
