import datasets
import numpy as np
import pytest

from moco_accel.evaluation.demo_classes import CLASSES
from moco_accel.imagery.demo import TILE_SIZE, Demo, Windows, _assert_apart, class_counts, load_demo, write_demo
from moco_accel.imagery.demo import _cell_sums as cell_sums
from moco_accel.imagery.demo import _window_sums as window_sums
from moco_accel.recipe.data_sections import Data
from moco_accel.tiles.tiles import open_tiles


@pytest.fixture(scope="module")
def demo():
    return load_demo()


def covered(windows, shape):
    """Pixels that lie in any of the windows."""
    mask = np.zeros(shape, dtype=bool)
    for row, col in zip(windows.rows, windows.cols, strict=True):
        mask[row : row + TILE_SIZE, col : col + TILE_SIZE] = True
    return mask


def test_the_splits_are_what_the_documents_say(demo):
    assert {split: len(windows) for split, windows in demo.splits.items()} == {
        "pretrain": 21_171,
        "train": 2_505,
        "test": 2_947,
    }
    assert list(class_counts(demo.splits["train"]).values()) == [400, 157, 109, 348, 180, 200, 400, 180, 131, 400]
    assert list(class_counts(demo.splits["test"]).values()) == [400, 268, 165, 400, 163, 283, 400, 278, 190, 400]
    assert class_counts(demo.splits["pretrain"]) == {"unlabelled": 21_171}


def test_no_pixel_of_a_test_tile_is_ever_trained_on(demo):
    shape = demo.test_pixels.shape
    test = covered(demo.splits["test"], shape)
    assert test.sum() > 1_000_000
    assert demo.test_pixels[test].all()
    for side in ("pretrain", "train"):
        assert not (covered(demo.splits[side], shape) & demo.test_pixels).any()


def test_a_window_in_a_test_block_is_caught():
    test_pixels = np.zeros((64, 64), dtype=bool)
    test_pixels[31, 31] = True
    with pytest.raises(AssertionError):
        _assert_apart(Windows(np.array([0]), np.array([0]), np.array([0])), test_pixels)


def test_window_sums_equal_a_naive_count():
    mask = np.random.default_rng(0).random((83, 70)) < 0.3  # neither side a multiple of the cell of 8
    sums = window_sums(cell_sums(mask))
    assert sums.shape == (7, 5)
    for row in range(7):
        for col in range(5):
            assert sums[row, col] == mask[row * 8 : row * 8 + 32, col * 8 : col * 8 + 32].sum()


def test_labels_agree_with_what_is_known_of_places(demo, tmp_path, monkeypatch):
    """A shift or flip of the labels against the imagery would pass every other test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    splits = {"train": demo.splits["train"]}
    written = []
    write_demo(Demo(demo.mosaic, demo.test_pixels, splits), tmp_path, on_tile=written.append)
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
    colours = {name: tiles_mean(tiles, labels == number) for name, number in numbers.items()}
    assert min(colours["snow/ice"]) > 180
    assert colours["water"][2] > 2 * colours["water"][0]  # the sea is blue
    assert colours["barren"][0] > colours["barren"][2] + 30  # the desert is not
    # the tile is the mosaic's window, and its coordinates are those of the centre
    top, left = rows[100] - 135, cols[100]
    window = demo.mosaic[top : top + 32, left : left + 32].transpose(2, 0, 1)
    assert np.array_equal(tiles[100].numpy(), window)
    assert longitudes[100] == pytest.approx((cols[100] + 16) / 15 - 180, abs=1e-4)
    assert latitudes[100] == pytest.approx(90 - (rows[100] + 16) / 15, abs=1e-4)


def tiles_mean(tiles, chosen):
    return np.mean([tiles[int(index)].numpy().mean(axis=(1, 2)) for index in np.flatnonzero(chosen)[:50]], axis=0)


def test_no_label_touches_pretraining(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    some = demo.splits["pretrain"]
    few = Windows(some.rows[:5], some.cols[:5], some.labels[:5])
    write_demo(Demo(demo.mosaic, demo.test_pixels, {"pretrain": few}), tmp_path)
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "pretrain/*.parquet"), split="train")
    assert loaded.column_names == ["image", "row", "col", "longitude", "latitude"]
    assert (some.labels == -1).all()
