"""Windows of scenes into rows of the shards: what is skipped and why, encoded tiles, statistics."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from moco_accel.common.pixels import Mask, Pixels
from moco_accel.imagery.labels import Classes, LabelReader, folder_of
from moco_accel.imagery.options import Options
from moco_accel.scenes.clouds import CloudRule, cloud_rule
from moco_accel.scenes.grids import Grid
from moco_accel.scenes.layouts import Layout
from moco_accel.scenes.pictures import UnreadableImage
from moco_accel.scenes.rasters import PictureReader, RasterReader
from moco_accel.tiles.band_counter import BandCounter

Tile = tuple[Pixels, Mask | None, bytes | None]  # pixels, where they hold data, the file's bytes if they can serve

PAIR_COLUMN = "image_pair"
_OPEN_READERS = 3  # of a scene, and of what it is paired with
_COUNTED_AT_ONCE = 1 << 20  # pixels


@dataclass(frozen=True)
class Job:
    """Windows of one scene by the rows and columns they start at; `partners` may hold the same place."""

    layout: Layout
    rows: range
    cols: range
    partners: tuple[Layout, ...] = ()

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)


@dataclass
class Cut:
    """What became of some jobs' windows."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    windows: int = 0
    scenes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    counter: BandCounter | None = None


class Skipped(Exception):  # noqa: N818 - the reason is its message
    """A window that makes no tile, and why."""


class Cutter:
    """Cuts jobs into rows; keeps a few scenes open from one job to the next."""

    def __init__(self, source: Path, options: Options, classes: Classes, nodata: float | None = None) -> None:
        """`nodata` is what pixels without data are stored as; None: as they are."""
        self.root = source if source.is_dir() else source.parent
        self.options, self.classes, self.nodata = options, classes, nodata
        self._readers: OrderedDict[tuple[Layout, Grid], RasterReader | PictureReader] = OrderedDict()
        self._labels: tuple[Grid, LabelReader] | None = None

    def __call__(self, jobs: tuple[Job, ...]) -> Cut:
        counter = BandCounter(len(jobs[0].layout.bands), jobs[0].layout.dtype)
        cut = Cut(counter=counter)
        kept: list[Tile] = []
        for job in jobs:
            self._cut(job, cut, kept)
            if sum(tile[0][0].size for tile in kept) > _COUNTED_AT_ONCE:
                count_tiles(counter, kept)
                kept.clear()
        count_tiles(counter, kept)
        return cut

    def _cut(self, job: Job, cut: Cut, kept: list[Tile]) -> None:
        cut.windows += len(job)
        first = job.rows.start == 0 == job.cols.start
        height, width = window_shape(job.layout.grid, self.options.tile_size)
        try:
            reader = self._reader(job.layout, job.layout.grid)
        except UnreadableImage as reason:
            if first:
                cut.left_out.append((str(job.layout.scene.files[0]), str(reason)))
            return
        cut.scenes += first
        rule = cloud_rule(job.layout)
        for row, col, tile in _windows(reader, job, height, width):
            try:
                row_of_shard, tiles = self._row(job, row, col, tile, rule)
            except (Skipped, UnreadableImage) as reason:
                cut.skipped["damaged" if isinstance(reason, UnreadableImage) else str(reason)] += 1
                continue
            cut.rows.append(row_of_shard)
            kept.extend(tiles)

    def _reader(self, layout: Layout, grid: Grid) -> RasterReader | PictureReader:
        key = (layout, grid)
        if key not in self._readers:
            while len(self._readers) >= _OPEN_READERS:
                self._readers.popitem(last=False)[1].close()
            self._readers[key] = RasterReader(layout, grid, self.nodata) if layout.sources else PictureReader(layout)
        self._readers.move_to_end(key)
        return self._readers[key]

    def _row(
        self, job: Job, row: int, col: int, tile: Tile | UnreadableImage, rule: CloudRule | None
    ) -> tuple[dict[str, Any], list[Tile]]:
        """A row of the shards, and its tiles to count. Raises Skipped, UnreadableImage."""
        if isinstance(tile, UnreadableImage):
            raise tile
        check(tile[0], tile[1], rule, self.options)
        layout, tiles = job.layout, [tile]
        found: dict[str, Any] = {"image": encode(tile)}
        if self.options.pair_with:
            tiles.append(self._partner(job, row, col, *tile[0].shape[1:]))
            found[PAIR_COLUMN] = encode(tiles[1])
        if self.classes.names:
            found["label"] = self._label(layout, row, col, *tile[0].shape[1:])
        place = layout.grid.crs
        bounds = list(layout.grid.bounds(row, col, *tile[0].shape[1:])) if place else None
        path = layout.scene.files[0].relative_to(self.root).as_posix()
        found |= {"path": path, "scene": layout.scene.name, "row": row, "col": col, "crs": place, "bounds": bounds}
        return found, tiles

    def _label(self, layout: Layout, row: int, col: int, height: int, width: int) -> int:
        if not self.options.label_raster:
            return self.classes.names.index(folder_of(self.root, layout.scene))
        if self._labels is None or self._labels[0] != layout.grid:
            if self._labels:
                self._labels[1].close()
                self._labels = None
            self._labels = layout.grid, LabelReader(self.options.label_raster, self.classes, layout.grid)
        label = self._labels[1].label(row, col, height, width, self.options.majority)
        if isinstance(label, str):
            raise Skipped(label)
        return label

    def _partner(self, job: Job, row: int, col: int, height: int, width: int) -> Tile:
        """The first partner's tile of the same place that passes the same checks."""
        why = Skipped("no partner")
        grid = job.layout.grid
        for partner in job.partners:
            if not _covers(partner.grid, grid, row, col, height, width):
                continue
            try:
                reader = self._reader(partner, grid if grid.crs and partner.grid.crs else partner.grid)
                pixels, valid = reader.read(row, col, height, width)
                check(pixels, valid, cloud_rule(partner), self.options)
            except Skipped as reason:
                why = Skipped(f"partner: {reason}")
                continue
            except UnreadableImage:
                why = Skipped("partner: damaged")
                continue
            return pixels, valid, reader.encoded(height, width) if isinstance(reader, PictureReader) else None
        raise why


def window_shape(grid: Grid, tile_size: int) -> tuple[int, int]:
    """A side shorter than a tile is kept whole."""
    return min(tile_size, grid.height), min(tile_size, grid.width)


def _covers(partner: Grid, grid: Grid, row: int, col: int, height: int, width: int) -> bool:
    if grid.crs is None or partner.crs is None:
        return (partner.height, partner.width) == (grid.height, grid.width)
    left, bottom, right, top = grid.bounds(row, col, height, width)
    west, south, east, north = partner.bounds(0, 0, partner.height, partner.width)
    slack = abs(grid.transform[0]) * 1e-3
    return west <= left + slack and right <= east + slack and south <= bottom + slack and top <= north + slack


def _windows(
    reader: RasterReader | PictureReader, job: Job, height: int, width: int
) -> Iterator[tuple[int, int, Tile | UnreadableImage]]:
    """Row, column and tile of each window; read at once where they lie close, and one by one where that fails."""
    top, left = job.rows.start, job.cols.start
    region_height, region_width = job.rows[-1] - top + height, job.cols[-1] - left + width
    region: tuple[Pixels, Mask | None] | None = None
    if region_height * region_width <= 2 * len(job) * height * width:
        try:
            region = reader.read(top, left, region_height, region_width)
        except UnreadableImage:
            region = None
    for row in job.rows:
        for col in job.cols:
            try:
                if region is None:
                    pixels, valid = reader.read(row, col, height, width)
                else:
                    window = np.s_[..., row - top : row - top + height, col - left : col - left + width]
                    pixels, valid = region[0][window], None if region[1] is None else region[1][window]
            except UnreadableImage as reason:
                yield row, col, reason
                continue
            yield (
                row,
                col,
                (pixels, valid, reader.encoded(height, width) if isinstance(reader, PictureReader) else None),
            )


def check(pixels: Pixels, valid: Mask | None, rule: CloudRule | None, options: Options) -> None:
    """Raises Skipped when too large a share of a tile is without data or cloud white."""
    if valid is not None and 1 - valid.mean() > options.max_nodata:
        raise Skipped("no data")
    if rule and options.max_cloud < 1:
        white = rule.white(pixels)
        if (white if valid is None else white & valid).mean() > options.max_cloud:
            raise Skipped("cloud white")


def encode(tile: Tile) -> Any:
    """One or three bands of 8 bits as an encoded picture for `datasets.Image`; anything else as .npy bytes."""
    pixels, _, encoded = tile
    buffer = io.BytesIO()
    if not is_picture(len(pixels), str(pixels.dtype)):
        np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
        return buffer.getvalue()
    if encoded is None:
        bands_last = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(bands_last)).save(buffer, "png")
    return {"bytes": encoded or buffer.getvalue(), "path": None}


def is_picture(bands: int, dtype: str) -> bool:
    return dtype == "uint8" and bands in (1, 3)


def count_tiles(counter: BandCounter, tiles: list[Tile]) -> None:
    """Many small tiles cost as much as one large one when they are counted together."""
    if not tiles:
        return
    flat = np.concatenate([pixels.reshape(len(pixels), 1, -1) for pixels, _, _ in tiles], axis=2)
    masks = [np.ones(pixels[0].size, np.bool_) if valid is None else valid.ravel() for pixels, valid, _ in tiles]
    counter.add(flat, None if all(valid is None for _, valid, _ in tiles) else np.concatenate(masks)[None])
