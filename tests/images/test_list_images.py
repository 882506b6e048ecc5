"""Images below a folder: links are followed, loops and hidden files are not, and what is there twice is printed."""

from __future__ import annotations

import os

import pytest

from moco_accel.images.globs import glob_matcher
from moco_accel.images.kinds import IMAGE_SUFFIXES, is_hidden_name, list_images


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def images_in(root):
    """Return the images below a folder, and the lines that are printed."""
    lines: list[str] = []
    return list_images(root, IMAGE_SUFFIXES, lines.append), lines


def test_linked_folders_are_followed(tmp_path):
    touch(tmp_path, "half/a/1.png", "real/2.png", "real/deep/3.PNG", "half/a/notes.txt")
    (tmp_path / "half" / "b").symlink_to("../real")
    (tmp_path / "half" / "c").symlink_to(tmp_path / "real" / "deep")  # also below b
    found, lines = images_in(tmp_path / "half")
    assert found == ["a/1.png", "b/2.png", "b/deep/3.PNG", "c/3.PNG"]
    assert lines == [f"{tmp_path / 'half'}: 1 files are there twice, through links; e.g. c/3.PNG"]


def test_loops_end(tmp_path):
    touch(tmp_path, "root/a/1.png", "root/b/2.png")
    (tmp_path / "root" / "a" / "up").symlink_to("..")
    (tmp_path / "root" / "b" / "self").symlink_to("self")
    (tmp_path / "root" / "b" / "above").symlink_to(tmp_path)  # holds the root
    found, lines = images_in(tmp_path / "root")
    assert found == ["a/1.png", "b/2.png"]
    assert lines == [
        f"{tmp_path / 'root'}: 1 folders or links cannot be read or lead nowhere, and are left out; e.g. b/self"
    ]


def test_links_between_many_folders_end(tmp_path):
    """Each of twelve folders links to all others: every path through them would be 12! folders."""
    for first in range(12):
        touch(tmp_path, f"{first}/x.png")
        for second in range(12):
            (tmp_path / str(first) / f"to{second}").symlink_to(f"../{second}")
    found, lines = images_in(tmp_path)
    assert len(found) == 12 + 12 * 11
    assert "132 files are there twice" in lines[0]


def test_linked_files_and_lost_links(tmp_path):
    touch(tmp_path, "root/1.png", "store/2", "root/.hidden/4.png")
    (tmp_path / "root" / "again.png").symlink_to("1.png")
    (tmp_path / "root" / "2.png").symlink_to("../store/2")  # as the hub's cache keeps files
    (tmp_path / "root" / "3.png").symlink_to("nowhere.png")
    (tmp_path / "root" / "4.png").symlink_to(".hidden/4.png")
    (tmp_path / "root" / "gone").symlink_to("../gone")
    found, lines = images_in(tmp_path / "root")
    assert found == ["1.png", "2.png", "3.png", "4.png", "again.png"]  # 3.png becomes a damaged tile
    assert "1 files are there twice, through links; e.g. again.png" in lines[0]
    assert "1 folders or links cannot be read or lead nowhere, and are left out; e.g. gone" in lines[1]


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/a.png",
        "x/.ipynb_checkpoints/a.png",
        "__MACOSX/x/a.png",
        "@eaDir/a.png",
        "x/._a.png",
        ".a.png",
        "#recycle/a.png",
        "$RECYCLE.BIN/a.png",
    ],
)
def test_hidden_names(tmp_path, name):
    touch(tmp_path, name, "x/a.png", "Thumbs.db", "x/Thumbs.db", "x/desktop.ini")
    assert is_hidden_name(name)
    assert images_in(tmp_path) == (["x/a.png"], [])


def test_names_that_are_not_utf8(tmp_path):
    touch(tmp_path, os.fsdecode(b"zz\xe9.png"), "a.png")
    assert images_in(tmp_path)[0] == ["a.png", "zz\udce9.png"]


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.png", ["a.png"], ["a/b.png", "a.jpg"]),
        ("**/*.png", ["a.png", "a/b.png", "a/b/c.png"], ["a.jpg"]),
        ("a/**/x/*", ["a/x/1", "a/b/c/x/1"], ["x/1", "a/x", "a/xx/1"]),
        ("[a-c]?[!0-9].tif", ["bxx.tif"], ["dxx.tif", "bx1.tif", "b/x.tif"]),
        ("a[[]1].png", ["a[1].png"], ["a1.png"]),
        ("**", ["a", "a/b"], []),
    ],
)
def test_globs(pattern, matching, others):
    matches = glob_matcher(pattern)
    assert all(map(matches, matching))
    assert not any(map(matches, others))
