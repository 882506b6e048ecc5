"""The demo imagery: tiles of NASA's Blue Marble for pretraining, and labelled ones to judge the features on.

Labels are MODIS land cover (IGBP classes, merged). Its weaknesses belong beside every figure measured on it: pixels
of 7 km, a plate carrée projection that stretches towards the poles, and labels that are themselves a noisy
classification.
"""

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

DEMO_IMAGE = "bmng.jpg"
TILE_SIZE = 32

_LABELS = "landcover_2019.tif"
_PIXELS_PER_DEGREE = 15
_NORTH, _SOUTH = 81, -56  # Antarctica and the empty Arctic are left out
_CELL = 8  # pixels; pretraining windows start on every cell, labelled ones on every second
_LABELLED_STRIDE = 16
_BLOCK = 96  # pixels; a block is for training or for testing, never both
_MIN_MAJORITY = 0.6
_MIN_LAND = 0.1
_MAX_PER_CLASS = 400  # and side
_SPLIT_SEED = 2  # leaves every class more than 100 windows on either side
_IGBP_CLASSES = 17

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Upper left corners of windows in `mosaic` pixels [N], and their class numbers [N] (-1: not labelled)."""

    rows: IntArray
    cols: IntArray
    labels: IntArray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Demo:
    """`mosaic` uint8 [H, W, 3], north up from `_NORTH`; `test_pixels` bool [H, W]; windows of each split."""

    mosaic: npt.NDArray[np.uint8]
    test_pixels: npt.NDArray[np.bool_]
    splits: dict[str, Windows]


def load_demo() -> Demo:
    """Choose the windows of every split; the same ones on every machine. Takes about two seconds and 200 MB.

    No pixel of a `pretrain` or `train` window lies in a test block.
    """
    mosaic, classes = _read_assets()
    height, width = classes.shape
    test_blocks = _test_blocks(-(-height // _BLOCK), -(-width // _BLOCK))
    test_pixels = test_blocks.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)[:height, :width]
    shares = _class_shares(classes)
    touches_test = _window_sums(_cell_sums(test_pixels)) > 0
    pretrain = (1 - shares[..., 0] > _MIN_LAND) & ~touches_test
    splits = {"pretrain": _windows(pretrain, np.full(pretrain.shape, -1))}
    for side, is_test in (("train", False), ("test", True)):
        splits[side] = _labelled(shares, touches_test == is_test)
    for side in ("pretrain", "train"):
        _assert_apart(splits[side], test_pixels)
    return Demo(mosaic, test_pixels, splits)


def write_demo(
    demo: Demo, out_dir: Path, overwrite: bool = False, on_tile: Callable[[str], None] | None = None
) -> None:
    """Write `out_dir/pretrain`, `/train` and `/test`; `on_tile(split)` is called after each tile.

    Columns: image (PNG), label (not in pretrain: no label may touch pretraining), row and col of the window in the
    5400 × 2700 mosaic, longitude and latitude of its centre in degrees. Raises UserError when a folder holds shards
    already and `overwrite` is false.
    """
    for split, windows in demo.splits.items():
        rows = _rows(demo.mosaic, windows, split, on_tile)
        write_shards(rows, _features(split), out_dir / split, overwrite=overwrite)


def class_counts(windows: Windows) -> dict[str, int]:
    """Windows per class name; `unlabelled` for those of pretraining."""
    named = {name: int((windows.labels == number).sum()) for number, name in enumerate(CLASSES)}
    unlabelled = int((windows.labels < 0).sum())
    return {"unlabelled": unlabelled} if unlabelled else named


def _read_assets() -> tuple[npt.NDArray[np.uint8], IntArray]:
    """The mosaic between `_NORTH` and `_SOUTH`, and per pixel a merged class (its number, or len(CLASSES): none)."""
    assets = files("moco_accel") / "assets"
    with (assets / DEMO_IMAGE).open("rb") as file, Image.open(file) as image:
        mosaic = np.asarray(image)
    with (assets / _LABELS).open("rb") as file, Image.open(file) as image:
        igbp = np.asarray(image)
    merged = np.full(_IGBP_CLASSES, len(CLASSES))
    for number, members in enumerate(CLASSES.values()):
        merged[list(members)] = number
    height, width = mosaic.shape[:2]
    rows = ((np.arange(height) + 0.5) * igbp.shape[0] / height).astype(int)  # nearest label of each pixel centre
    cols = ((np.arange(width) + 0.5) * igbp.shape[1] / width).astype(int)
    band = slice(_top_row(), (90 - _SOUTH) * _PIXELS_PER_DEGREE)
    return mosaic[band], merged[igbp[rows[band]][:, cols]]


def _top_row() -> int:
    return (90 - _NORTH) * _PIXELS_PER_DEGREE


def _test_blocks(rows: int, cols: int) -> npt.NDArray[np.bool_]:
    # RandomState: its stream is frozen for ever, that of default_rng is not, and a split must not drift
    return np.random.RandomState(_SPLIT_SEED).random_sample((rows, cols)) < 0.5


def _class_shares(classes: IntArray) -> npt.NDArray[np.float64]:
    """Share of each class [rows, cols, class] in the windows that start on every cell."""
    sums = [_window_sums(_cell_sums(classes == number)) for number in range(len(CLASSES))]
    return np.stack(sums, axis=-1) / TILE_SIZE**2


def _cell_sums(mask: npt.NDArray[np.bool_]) -> IntArray:
    rows, cols = (length // _CELL for length in mask.shape)
    cells = mask[: rows * _CELL, : cols * _CELL].reshape(rows, _CELL, cols, _CELL)
    return np.asarray(cells.sum(axis=(1, 3)), dtype=np.int64)


def _window_sums(cells: IntArray) -> IntArray:
    """Sums over windows of TILE_SIZE that start on every cell, from sums per cell."""
    side = TILE_SIZE // _CELL
    windows = np.lib.stride_tricks.sliding_window_view(cells, (side, side))
    return np.asarray(windows.sum(axis=(2, 3)), dtype=np.int64)


def _labelled(shares: npt.NDArray[np.float64], on_this_side: npt.NDArray[np.bool_]) -> Windows:
    """At most `_MAX_PER_CLASS` windows per class with a clear majority, whole within one block of this side."""
    labels, majority = shares.argmax(axis=-1), shares.max(axis=-1)
    starts = [np.arange(length) * _CELL for length in labels.shape]
    grid = np.logical_and.outer(*((start % _LABELLED_STRIDE == 0) for start in starts))
    whole = np.logical_and.outer(*((start % _BLOCK <= _BLOCK - TILE_SIZE) for start in starts))
    eligible = grid & whole & on_this_side & (majority >= _MIN_MAJORITY)
    chosen = np.zeros_like(eligible)
    for number in range(len(CLASSES)):
        places = np.flatnonzero(eligible & (labels == number))
        chosen.flat[np.random.RandomState(number).permutation(places)[:_MAX_PER_CLASS]] = True
    return _windows(chosen, labels)


def _windows(chosen: npt.NDArray[np.bool_], labels: IntArray) -> Windows:
    rows, cols = np.nonzero(chosen)
    return Windows(rows * _CELL, cols * _CELL, labels[chosen])


def _assert_apart(windows: Windows, test_pixels: npt.NDArray[np.bool_]) -> None:
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
    mosaic: npt.NDArray[np.uint8], windows: Windows, split: str, on_tile: Callable[[str], None] | None
) -> Iterator[dict[str, Any]]:
    for row, col, label in zip(windows.rows.tolist(), windows.cols.tolist(), windows.labels.tolist(), strict=True):
        png = io.BytesIO()
        Image.fromarray(mosaic[row : row + TILE_SIZE, col : col + TILE_SIZE]).save(png, "png")
        fields: dict[str, Any] = {"image": {"bytes": png.getvalue(), "path": None}}
        if split != "pretrain":
            fields["label"] = label
        fields |= {"row": row + _top_row(), "col": col}
        fields["longitude"] = (col + TILE_SIZE / 2) / _PIXELS_PER_DEGREE - 180
        fields["latitude"] = _NORTH - (row + TILE_SIZE / 2) / _PIXELS_PER_DEGREE
        yield fields
        if on_tile:
            on_tile(split)
