"""The demo tiles: NASA's Blue Marble for pretraining, and tiles for evaluation that MODIS land cover labels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from PIL import Image

from moco_accel.evaluation.demo_classes import CLASSES
from moco_accel.sources.shard_writer import write_shards

TILE_SIZE = 32

_IMAGE = "bmng.jpg"
_LABELS = "landcover_2019.tif"
_PIXELS_PER_DEGREE = 15
_NORTH, _SOUTH = 81, -56  # without Antarctica and the empty Arctic
_TOP_ROW = (90 - _NORTH) * _PIXELS_PER_DEGREE
_CELL = 8  # pixels; pretraining windows start at every cell, labelled windows at every second
_LABELLED_STRIDE = 16
_BLOCK = 96  # pixels; a block is for training or for testing
_MIN_MAJORITY = 0.6
_MIN_LAND = 0.1
_MAX_PER_CLASS = 400  # in each split
_SPLIT_SEED = 2  # gives every class more than 100 windows in both splits
_NUM_IGBP_CLASSES = 17

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Upper left corners of windows in pixels of the mosaic [N], and class numbers [N] (-1: unlabelled)."""

    rows: IntArray
    cols: IntArray
    labels: IntArray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class DemoTiles:
    """Mosaic uint8 [height, width, 3], mask of test blocks bool [height, width], and the windows of each split."""

    mosaic: npt.NDArray[np.uint8]
    test_pixels: npt.NDArray[np.bool_]
    splits: dict[str, Windows]


def select_demo_tiles() -> DemoTiles:
    """Select the windows of every split, the same on every machine (two seconds, 200 MB).

    No pixel of a `pretrain` or `train` window is in a test block.
    """
    mosaic, classes = _read_assets()
    height, width = classes.shape
    num_blocks = -(-height // _BLOCK), -(-width // _BLOCK)
    # the stream of RandomState never changes between versions of numpy; that of default_rng may
    is_test_block = np.random.RandomState(_SPLIT_SEED).random_sample(num_blocks) < 0.5
    test_pixels = is_test_block.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)[:height, :width]
    touches_test = _window_sums(test_pixels) > 0
    sums = [_window_sums(classes == number) for number in range(len(CLASSES))]
    shares = np.stack(sums, axis=-1) / TILE_SIZE**2  # of each class in each window [rows, cols, class]
    pretrain = (1 - shares[..., 0] > _MIN_LAND) & ~touches_test
    splits = {"pretrain": _windows(pretrain, np.full(pretrain.shape, -1))}
    for split, is_test in (("train", False), ("test", True)):
        splits[split] = _select_labelled(shares, touches_test == is_test)
    for split in ("pretrain", "train"):
        _assert_no_test_pixels(splits[split], test_pixels)
    return DemoTiles(mosaic, test_pixels, splits)


def write_demo(
    demo: DemoTiles, out_dir: Path, overwrite: bool = False, on_tile: Callable[[str], None] = lambda split: None
) -> None:
    """Write `out_dir/pretrain`, `/train` and `/test`.

    Columns: image (PNG), label (not in pretrain, so that pretraining cannot use it), row and col of the window in the
    5400 × 2700 mosaic, longitude and latitude of its centre in degrees. `on_tile(split)` is called after each tile.

    Raises:
        UserError: If a folder holds shards and `overwrite` is False.
    """
    for split, windows in demo.splits.items():
        rows = _rows(demo.mosaic, windows, split, on_tile)
        write_shards(rows, _features(split), out_dir / split, overwrite=overwrite)


def class_counts(windows: Windows) -> dict[str, int]:
    """Return the number of windows per class, or as `unlabelled` if they have no labels."""
    counts = {name: int((windows.labels == number).sum()) for number, name in enumerate(CLASSES)}
    unlabelled = int((windows.labels < 0).sum())
    return {"unlabelled": unlabelled} if unlabelled else counts


def _read_assets() -> tuple[npt.NDArray[np.uint8], IntArray]:
    """Return the mosaic between `_NORTH` and `_SOUTH`, and the class of each pixel (len(CLASSES): none)."""
    assets = files("moco_accel") / "assets"
    with (assets / _IMAGE).open("rb") as file, Image.open(file) as image:
        mosaic = np.asarray(image)
    with (assets / _LABELS).open("rb") as file, Image.open(file) as image:
        igbp = np.asarray(image)
    merged = np.full(_NUM_IGBP_CLASSES, len(CLASSES))
    for number, members in enumerate(CLASSES.values()):
        merged[list(members)] = number
    height, width = mosaic.shape[:2]
    rows = ((np.arange(height) + 0.5) * igbp.shape[0] / height).astype(int)  # nearest label of each pixel centre
    cols = ((np.arange(width) + 0.5) * igbp.shape[1] / width).astype(int)
    band = slice(_TOP_ROW, (90 - _SOUTH) * _PIXELS_PER_DEGREE)
    return mosaic[band], merged[igbp[rows[band]][:, cols]]


def _window_sums(mask: npt.NDArray[np.bool_]) -> IntArray:
    """Return the number of marked pixels in each window of TILE_SIZE that starts at a cell."""
    rows, cols = (length // _CELL for length in mask.shape)
    cells = mask[: rows * _CELL, : cols * _CELL].reshape(rows, _CELL, cols, _CELL).sum(axis=(1, 3))
    side = TILE_SIZE // _CELL
    windows = np.lib.stride_tricks.sliding_window_view(cells, (side, side))
    return np.asarray(windows.sum(axis=(2, 3)), dtype=np.int64)


def _select_labelled(shares: npt.NDArray[np.float64], in_split: npt.NDArray[np.bool_]) -> Windows:
    """Select at most `_MAX_PER_CLASS` windows per class with a clear majority, each within one block of the split."""
    labels, majority = shares.argmax(axis=-1), shares.max(axis=-1)
    starts = [np.arange(length) * _CELL for length in labels.shape]
    on_grid = np.logical_and.outer(*((start % _LABELLED_STRIDE == 0) for start in starts))
    in_one_block = np.logical_and.outer(*((start % _BLOCK <= _BLOCK - TILE_SIZE) for start in starts))
    eligible = on_grid & in_one_block & in_split & (majority >= _MIN_MAJORITY)
    selected = np.zeros_like(eligible)
    for number in range(len(CLASSES)):
        places = np.flatnonzero(eligible & (labels == number))
        selected.flat[np.random.RandomState(number).permutation(places)[:_MAX_PER_CLASS]] = True
    return _windows(selected, labels)


def _windows(selected: npt.NDArray[np.bool_], labels: IntArray) -> Windows:
    rows, cols = np.nonzero(selected)
    return Windows(rows * _CELL, cols * _CELL, labels[selected])


def _assert_no_test_pixels(windows: Windows, test_pixels: npt.NDArray[np.bool_]) -> None:
    for row, col in zip(windows.rows, windows.cols, strict=True):
        assert not test_pixels[row : row + TILE_SIZE, col : col + TILE_SIZE].any(), (row, col)


def _features(split: str) -> datasets.Features:
    columns: dict[str, Any] = {"image": datasets.Image()}
    if split != "pretrain":
        columns["label"] = datasets.ClassLabel(names=list(CLASSES))
    columns |= {"row": datasets.Value("int32"), "col": datasets.Value("int32")}
    columns |= {"longitude": datasets.Value("float32"), "latitude": datasets.Value("float32")}
    return datasets.Features(columns)


def _rows(
    mosaic: npt.NDArray[np.uint8], windows: Windows, split: str, on_tile: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    for row, col, label in zip(windows.rows.tolist(), windows.cols.tolist(), windows.labels.tolist(), strict=True):
        png = io.BytesIO()
        Image.fromarray(mosaic[row : row + TILE_SIZE, col : col + TILE_SIZE]).save(png, "png")
        fields: dict[str, Any] = {"image": {"bytes": png.getvalue(), "path": None}}
        if split != "pretrain":
            fields["label"] = label
        fields |= {"row": row + _TOP_ROW, "col": col}
        fields["longitude"] = (col + TILE_SIZE / 2) / _PIXELS_PER_DEGREE - 180
        fields["latitude"] = _NORTH - (row + TILE_SIZE / 2) / _PIXELS_PER_DEGREE
        yield fields
        on_tile(split)
