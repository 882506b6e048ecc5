"""The demo tiles: counts, separate splits, labels at known places, and their columns."""

import datasets
import numpy as np
import pytest

from moco_accel.evaluation.demo_classes import CLASSES
from moco_accel.imagery.demo import (
    TILE_SIZE,
    DemoTiles,
    Windows,
    _assert_no_test_pixels,
    _window_sums,
    class_counts,
    select_demo_tiles,
    write_demo,
)
from moco_accel.recipe.data_sections import Data
from moco_accel.tiles.tiles import open_tiles


@pytest.fixture(scope="module")
def demo():
    return select_demo_tiles()


def covered(windows, shape):
    """Return a mask of the pixels in any of the windows."""
    mask = np.zeros(shape, dtype=bool)
    for row, col in zip(windows.rows, windows.cols, strict=True):
        mask[row : row + TILE_SIZE, col : col + TILE_SIZE] = True
    return mask


def test_number_of_tiles_by_split_and_class(demo):
    assert {split: len(windows) for split, windows in demo.splits.items()} == {
        "pretrain": 21_171,
        "train": 2_505,
        "test": 2_947,
    }
    assert list(class_counts(demo.splits["train"]).values()) == [400, 157, 109, 348, 180, 200, 400, 180, 131, 400]
    assert list(class_counts(demo.splits["test"]).values()) == [400, 268, 165, 400, 163, 283, 400, 278, 190, 400]
    assert class_counts(demo.splits["pretrain"]) == {"unlabelled": 21_171}


def test_no_pixel_of_a_test_tile_is_in_a_training_tile(demo):
    shape = demo.test_pixels.shape
    test = covered(demo.splits["test"], shape)
    assert test.sum() > 1_000_000
    assert demo.test_pixels[test].all()
    for side in ("pretrain", "train"):
        assert not (covered(demo.splits[side], shape) & demo.test_pixels).any()


def test_a_training_window_in_a_test_block_is_detected():
    test_pixels = np.zeros((64, 64), dtype=bool)
    test_pixels[31, 31] = True
    with pytest.raises(AssertionError):
        _assert_no_test_pixels(Windows(np.array([0]), np.array([0]), np.array([0])), test_pixels)


def test_window_sums_equal_a_naive_count():
    mask = np.random.default_rng(0).random((83, 70)) < 0.3  # neither side a multiple of the cell of 8
    sums = _window_sums(mask)
    assert sums.shape == (7, 5)
    for row in range(7):
        for col in range(5):
            assert sums[row, col] == mask[row * 8 : row * 8 + 32, col * 8 : col * 8 + 32].sum()


def test_labels_match_known_places(demo, tmp_path, monkeypatch):
    """A shift or flip of labels against imagery would pass every other test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    splits = {"train": demo.splits["train"]}
    written = []
    write_demo(DemoTiles(demo.mosaic, demo.test_pixels, splits), tmp_path, on_tile=written.append)
    assert written == ["train"] * 2_505
    tiles = open_tiles(str(tmp_path / "train"), Data(), 3)
    assert tiles.label_names("label") == list(CLASSES)
    labels, rows, cols = (np.array(tiles.column(name)) for name in ("label", "row", "col"))
    latitudes, longitudes = (np.array(tiles.column(name)) for name in ("latitude", "longitude"))
    numbers = {name: number for number, name in enumerate(CLASSES)}
    greenland = (labels == numbers["snow/ice"]) & (latitudes > 60) & (longitudes > -75) & (longitudes < -10)
    sahara = (
        (labels == numbers["barren"]) & (latitudes > 15) & (latitudes < 32) & (longitudes > -15) & (longitudes < 35)
    )
    assert greenland.sum() > 50
    assert sahara.sum() > 50
    assert abs(latitudes[labels == numbers["evergreen broadleaf"]]).max() < 45
    colours = {name: mean_colour(tiles, labels == number) for name, number in numbers.items()}
    assert min(colours["snow/ice"]) > 180
    assert colours["water"][2] > 2 * colours["water"][0]  # the sea is blue
    assert colours["barren"][0] > colours["barren"][2] + 30  # the desert is not blue
    # the tile is the window of the mosaic, and its coordinates are those of its centre
    top, left = rows[100] - 135, cols[100]
    window = demo.mosaic[top : top + 32, left : left + 32].transpose(2, 0, 1)
    assert np.array_equal(tiles[100].numpy(), window)
    assert longitudes[100] == pytest.approx((cols[100] + 16) / 15 - 180, abs=1e-4)
    assert latitudes[100] == pytest.approx(90 - (rows[100] + 16) / 15, abs=1e-4)


def mean_colour(tiles, selected):
    return np.mean([tiles[int(index)].numpy().mean(axis=(1, 2)) for index in np.flatnonzero(selected)[:50]], axis=0)


def test_pretraining_tiles_have_no_labels(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    some = demo.splits["pretrain"]
    few = Windows(some.rows[:5], some.cols[:5], some.labels[:5])
    write_demo(DemoTiles(demo.mosaic, demo.test_pixels, {"pretrain": few}), tmp_path)
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "pretrain/*.parquet"), split="train")
    assert loaded.column_names == ["image", "row", "col", "longitude", "latitude"]
    assert (some.labels == -1).all()
