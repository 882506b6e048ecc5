"""Which images of a folder are tiles: masks are left out, kinds that do not fit together are refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.source_files import encode_image, error_message, random_array, tiff, tiles_of, write_file
from support.tile_files import npy

COLOUR = random_array((8, 24, 24, 3), "uint8")
LABELS = np.random.default_rng(1).integers(0, 3, (8, 24, 24)).astype(np.uint8)
WIDE = random_array((8, 4, 24, 24), seed=2)


def write_images(folder, pattern="{}.png", arrays=COLOUR, count=6):
    for number in range(count):
        raw = tiff(arrays[number]) if pattern.endswith(".tif") else encode_image(arrays[number])
        write_file(folder / pattern.format(number), raw)


def works_in(message):
    """Return the globs that a message offers."""
    return re.findall(r"data\.source='([^']*)' works", message)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}.png", "masks/{}.png"),
        ("images/{}.png", "masks_b/{}.png"),
        ("{}.png", "{}_mask.png"),
        ("a/{}.png", "a/labels/{}.png"),
        ("images/train/{}.png", "annotations/train/{}.png"),
        ("scene_{}.png", "scene_{}_udm.tif"),
    ],
)
def test_masks_are_known_by_name(tmp_path, capfd, images, masks):
    write_images(tmp_path, images)
    write_images(tmp_path, masks, LABELS[:, None] if masks.endswith(".tif") else LABELS)
    tiles = tiles_of(tmp_path)
    assert len(tiles) == 6
    assert tiles.bands == ["red", "green", "blue"]
    printed = capfd.readouterr().err
    assert "6 images with the names of masks are left out, e.g. " + masks.format(0) in printed
    chosen = re.search(r"data\.source='([^']*)' reads such", printed)
    assert len(tiles_of(chosen[1], 1)) == 6


@pytest.mark.parametrize(
    ("images", "others"), [("rgb/{}.png", "cls/{}.png"), ("{}_rgb.png", "{}_cls.png"), ("x/{}.png", "y/z/{}.png")]
)
def test_label_maps_are_known_by_their_values(tmp_path, capfd, images, others):
    write_images(tmp_path, images)
    write_images(tmp_path, others, LABELS)
    assert {tuple(tiles_of(tmp_path)[index].unique().shape) for index in range(6)} != {(3,)}
    printed = capfd.readouterr().err
    assert (
        f"6 images with few values, which masks and label maps have, are left out, e.g. {others.format(0)}" in printed
    )
    chosen = re.search(r"data\.source='([^']*)' reads such", printed)
    assert len(tiles_of(chosen[1], 1)) == 6


def test_a_band_of_classes_beside_many_bands_is_no_tile(tmp_path, capfd):
    write_images(tmp_path, "{}_ms.tif", WIDE)
    write_images(tmp_path, "{}_classes.tif", LABELS[:, None])
    assert len(tiles_of(tmp_path, 4, bands=["B2", "B3", "B4", "B8"], scaling="percentiles")) == 6
    assert "6 images with few values" in capfd.readouterr().err


def test_a_folder_of_masks_alone_is_read(tmp_path, capfd):
    write_images(tmp_path / "masks", "{}_mask.png", LABELS)
    assert len(tiles_of(tmp_path, 1)) == len(tiles_of(tmp_path / "masks", 1)) == 6
    assert "left out" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("rgb/{}.png", COLOUR), ("ms/{}.tif", WIDE)),
        (("{}.png", COLOUR), ("{}.tif", WIDE)),
        (("{}_8.tif", (WIDE // 64).astype(np.uint8)), ("{}_16.tif", WIDE)),
        (("a/{}.tif", WIDE), ("b/{}.tif", WIDE[:, :3])),
        (("a/{}_s.tif", WIDE), ("a/{}_f.tif", WIDE.astype(np.float32))),
    ],
)
def test_kinds_that_compete_are_refused(tmp_path, first, second):
    """Each glob that the message offers yields the images of one kind."""
    write_images(tmp_path, *first, count=6)
    write_images(tmp_path, *second, count=2)
    message = error_message(tmp_path, None)
    assert "holds 2 kinds of images, of which one can be read (8 files were looked at)" in message
    assert f"e.g. {first[0].format(0)}" in message
    assert f"e.g. {second[0].format(0)}" in message
    assert [len(tiles_of(pattern, None, scaling="percentiles")) for pattern in works_in(message)] == [6, 2]


def test_arrays_of_two_types_are_refused(tmp_path):
    for number in range(3):
        write_file(tmp_path / "a" / f"{number}.npy", npy(WIDE[number]))
        write_file(tmp_path / "b" / f"{number}.npy", npy(WIDE[number].astype(np.float32)))
    message = error_message(tmp_path, None)
    assert "3 of 4 bands of uint16" in message
    assert [len(tiles_of(pattern, None)) for pattern in works_in(message)] == [3, 3]


def test_a_few_odd_files_are_damaged_tiles(tmp_path):
    """One of 101 files is less than a run may leave out, and it lists those."""
    for number in range(100):
        write_file(tmp_path / f"{number}.png", encode_image(COLOUR[0]))
    write_images(tmp_path, "odd{}.tif", WIDE, count=1)
    assert len(tiles_of(tmp_path)) == 101


def test_grey_pictures_among_colour_are_printed(tmp_path, capfd):
    write_images(tmp_path)
    write_images(tmp_path, "1{}.png", COLOUR[..., 0], count=2)
    tiles = tiles_of(tmp_path)
    assert (len(tiles), tiles[2].shape) == (8, (3, 24, 24))
    assert "2 of 8 sampled images are grey, and are read as colour; e.g. 10.png" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("colour", "grey"), [("rgb/{}.png", "sar/{}.png"), ("{}_rgb.png", "{}_sar.png"), ("a/{}.jpg", "overlay/{}.png")]
)
def test_grey_pictures_with_names_of_their_own_compete(tmp_path, capfd, colour, grey):
    write_images(tmp_path, colour)
    write_images(tmp_path, grey, COLOUR[..., 0], count=4)
    message = error_message(tmp_path)
    assert "6 of 8-bit colour" in message
    assert "4 of 8-bit grey" in message
    assert [len(tiles_of(pattern, None)) for pattern in works_in(message)] == [6, 4]
    every = re.search(r"data\.source='([^']*)' reads all, grey as colour", message)
    assert len(tiles_of(every[1])) == 10
    assert "4 of 10 sampled images are grey, and are read as colour" in capfd.readouterr().err


def test_globs_are_asked_as_folders_are(tmp_path):
    write_images(tmp_path, "images/{}.png")
    write_images(tmp_path, "masks/{}.png", LABELS)
    assert len(tiles_of(tmp_path / "**" / "*.png")) == 6
    assert len(tiles_of(tmp_path / "*" / "*.png")) == 6
    write_images(tmp_path, "ms/{}.tif", WIDE)
    assert "holds 2 kinds" in error_message(tmp_path / "**" / "*")
    assert len(tiles_of(tmp_path / "images")) == 6


def test_pictures_in_a_folder_with_the_name_of_masks_are_tiles(tmp_path):
    """Classes may be called labels or seg; colour pictures in them are imagery."""
    for name in ("forest", "labels", "seg", "mask_house"):
        write_images(tmp_path / name, count=2)
    assert len(tiles_of(tmp_path)) == 8
    write_images(tmp_path / "masks", arrays=COLOUR // 128 * 255, count=2)  # label maps in colours
    assert len(tiles_of(tmp_path)) == 8
