"""Cut windows of scenes into rows of the shards: check, encode and label each tile, and collect statistics."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from moco_accel.imagery.labels import LabelClasses, LabelReader, class_folder
from moco_accel.imagery.options import BuildOptions
from moco_accel.imagery.windows import SkippedWindow, Tile, Window, WindowBlock, read_region, read_tile
from moco_accel.scenes.begun_scenes import CHANGED
from moco_accel.scenes.clouds import CloudRule, cloud_rule
from moco_accel.scenes.grids import Grid
from moco_accel.scenes.image_files import UnreadableImage
from moco_accel.scenes.layouts import Layout
from moco_accel.scenes.pixel_types import LossyCast
from moco_accel.scenes.rasters import PictureReader, RasterReader
from moco_accel.tiles.running_statistics import RunningStatistics

PAIR_COLUMN = "image_pair"
_MAX_OPEN_READERS = 3  # one scene and those of the other season
_COUNTED_AT_ONCE = 1 << 20  # pixels


@dataclass
class CutTiles:
    """Rows for the shards, and counts, of one unit of work.

    Attributes:
        scenes: Scenes whose first window is in this unit.
        left_out: (file, reason) of each scene that cannot be read.
    """

    counter: RunningStatistics
    rows: list[dict[str, Any]] = field(default_factory=list)
    windows: int = 0
    scenes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class BuildProgress:
    """Counts over the units before `next_unit`; their tiles are in `shards` complete shards.

    `state.npz` stores the fields under their names, so a renamed field breaks the resumption of older builds.
    """

    next_unit: int = 0
    shards: int = 0
    done: bool = False
    scenes: int = 0
    windows: int = 0
    tiles: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    per_class: Counter[str] = field(default_factory=Counter)
    num_left_out: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    counter: RunningStatistics | None = None


class TileCutter:
    """Cut blocks of windows into rows of the shards; keep a few files open between calls."""

    def __init__(self, source: Path, options: BuildOptions, classes: LabelClasses, nodata: float | None) -> None:
        self.root = source if source.is_dir() else source.parent
        self.options, self.classes = options, classes
        self.nodata = nodata  # stored where pixels hold no data; None: they stay unchanged
        self._readers: OrderedDict[tuple[Layout, Grid], RasterReader | PictureReader] = OrderedDict()
        self._labels: LabelReader | None = None

    def __call__(self, unit: tuple[WindowBlock, ...]) -> CutTiles:
        cut = CutTiles(RunningStatistics(len(unit[0].layout.bands), unit[0].layout.dtype))
        uncounted: list[Tile] = []
        for block in unit:
            self._cut_block(block, cut, uncounted)
            if sum(tile.pixels[0].size for tile in uncounted) > _COUNTED_AT_ONCE:
                _count_pixels(cut.counter, uncounted)
                uncounted.clear()
        _count_pixels(cut.counter, uncounted)
        return cut

    def tile(self, layout: Layout, grid: Grid, window: Window) -> Tile:
        """Read a tile on a grid; raise SkippedWindow or UnreadableImage if there is none to store."""
        tile = read_tile(self._reader(layout, grid), window)
        _check_tile(tile, cloud_rule(layout), self.options)
        return tile

    def _cut_block(self, block: WindowBlock, cut: CutTiles, uncounted: list[Tile]) -> None:
        cut.windows += len(block)
        if block.layout.is_gone:
            cut.skipped[CHANGED] += len(block)
            return
        is_first = block.rows[0] == 0 == block.cols[0]
        try:
            reader = self._reader(block.layout, block.layout.grid)
        except UnreadableImage as reason:
            if is_first:
                cut.left_out.append((str(block.layout.scene.files[0]), str(reason)))
            else:  # it was removed meanwhile
                cut.skipped[CHANGED] += len(block)
            return
        cut.scenes += is_first
        rule = cloud_rule(block.layout)
        region = read_region(reader, block)
        for window in block:
            try:
                shard_row, tiles = self._shard_row(block, window, read_tile(reader, window, region), rule)
            except (SkippedWindow, UnreadableImage) as reason:
                is_damaged = isinstance(reason, UnreadableImage) and not isinstance(reason, LossyCast)
                cut.skipped["damaged" if is_damaged else str(reason)] += 1
                continue
            cut.rows.append(shard_row)
            uncounted.extend(tiles)

    def _reader(self, layout: Layout, grid: Grid) -> RasterReader | PictureReader:
        key = (layout, grid)
        if key not in self._readers:
            while len(self._readers) >= _MAX_OPEN_READERS:
                self._readers.popitem(last=False)[1].close()
            self._readers[key] = RasterReader(layout, grid, self.nodata) if layout.sources else PictureReader(layout)
        self._readers.move_to_end(key)
        return self._readers[key]

    def _shard_row(
        self, block: WindowBlock, window: Window, tile: Tile, rule: CloudRule | None
    ) -> tuple[dict[str, Any], list[Tile]]:
        """Return a row of the shards, and its tiles; raise SkippedWindow or UnreadableImage if there is none."""
        _check_tile(tile, rule, self.options)
        scene, grid, tiles = block.layout.scene, block.layout.grid, [tile]
        columns: dict[str, Any] = {"image": _encode(tile)}
        if self.options.pair_with:
            tiles.append(self._paired_tile(block, window))
            columns[PAIR_COLUMN] = _encode(tiles[1])
        if self.classes.names:
            columns["label"] = self._label(block.layout, window)
        path = scene.files[0].relative_to(self.root).as_posix()
        columns |= {"path": path, "scene": scene.name, "row": window.row, "col": window.col, "crs": grid.crs}
        columns["bounds"] = list(grid.bounds(*window)) if grid.crs else None
        return columns, tiles

    def _label(self, layout: Layout, window: Window) -> int:
        if not self.options.label_raster:
            return self.classes.names.index(class_folder(self.root, layout.scene))
        if self._labels is None or self._labels.grid != layout.grid:
            if self._labels:
                self._labels.close()
                self._labels = None
            self._labels = LabelReader(self.options.label_raster, self.classes, layout.grid)
        return self._labels.label(window, self.options.majority)

    def _paired_tile(self, block: WindowBlock, window: Window) -> Tile:
        """Return the first tile of the other season that covers the window and passes the same checks."""
        reason = "no partner"
        grid = block.layout.grid
        for layout in block.paired_scenes:
            if not _covers(layout.grid, grid, window):
                continue
            try:
                return self.tile(layout, grid if grid.crs and layout.grid.crs else layout.grid, window)
            except SkippedWindow as skipped:
                reason = f"partner: {skipped}"
            except UnreadableImage:
                reason = "partner: damaged"
        raise SkippedWindow(reason)


def is_stored_as_picture(bands: int, dtype: str) -> bool:
    """Return True for tiles stored as `datasets.Image`: one or three bands of 8 bits."""
    return dtype == "uint8" and bands in (1, 3)


def _covers(other: Grid, grid: Grid, window: Window) -> bool:
    """Return True if `other` covers the whole window of `grid`."""
    if grid.crs is None or other.crs is None:
        return (other.height, other.width) == (grid.height, grid.width)
    left, bottom, right, top = grid.bounds(*window)
    west, south, east, north = other.bounds(0, 0, other.height, other.width)
    slack = abs(grid.transform[0]) * 1e-3
    return west <= left + slack and right <= east + slack and south <= bottom + slack and top <= north + slack


def _check_tile(tile: Tile, rule: CloudRule | None, options: BuildOptions) -> None:
    """Raise SkippedWindow if too large a share of the tile is without data or white like clouds."""
    if tile.valid is not None and 1 - tile.valid.mean() > options.max_nodata:
        raise SkippedWindow("no data")
    if rule and options.max_cloud < 1:
        white = rule.is_white(tile.pixels)
        if (white if tile.valid is None else white & tile.valid).mean() > options.max_cloud:
            raise SkippedWindow("cloud white")


def _encode(tile: Tile) -> Any:
    """Encode one or three bands of 8 bits for `datasets.Image`, anything else as .npy bytes."""
    pixels, buffer = tile.pixels, io.BytesIO()
    if not is_stored_as_picture(len(pixels), str(pixels.dtype)):
        np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
        return buffer.getvalue()
    if tile.source_bytes is None:
        bands_last = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(bands_last)).save(buffer, "png")
    return {"bytes": tile.source_bytes or buffer.getvalue(), "path": None}


def _count_pixels(counter: RunningStatistics, tiles: list[Tile]) -> None:
    """Count many tiles in one call: many small ones then cost as much as one large one."""
    if not tiles:
        return
    flat = np.concatenate([tile.pixels.reshape(len(tile.pixels), 1, -1) for tile in tiles], axis=2)
    masks = [np.ones(tile.pixels[0].size, np.bool_) if tile.valid is None else tile.valid.ravel() for tile in tiles]
    counter.add(flat, None if all(tile.valid is None for tile in tiles) else np.concatenate(masks)[None])
