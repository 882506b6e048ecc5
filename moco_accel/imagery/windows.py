"""Windows of scenes: their positions, and reading them as tiles."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from moco_accel.common.pixels import Mask, Pixels
from moco_accel.imagery.options import BuildOptions
from moco_accel.scenes.image_files import UnreadableImage
from moco_accel.scenes.layouts import Layout
from moco_accel.scenes.rasters import PictureReader, RasterReader

_MAX_SIZES = 100  # of scenes, for which a better tile size is sought
_MAX_EDGE_SHARE = 0.05  # of all pixels, above which a note says how many are left out


class SkippedWindow(Exception):  # noqa: N818 - the reason is its message
    """A window is not stored; the message is the reason, as build.json counts it."""


class Window(NamedTuple):
    """Position and size of a tile in the pixels of its scene."""

    row: int
    col: int
    height: int
    width: int


class Tile(NamedTuple):
    """Pixels [bands, height, width], mask of those with data (None: all), and the file's bytes if it can be stored."""

    pixels: Pixels
    valid: Mask | None
    source_bytes: bytes | None


@dataclass(frozen=True)
class WindowBlock:
    """Windows of one scene, all of one size.

    Attributes:
        rows: First pixel row of each row of windows.
        cols: First pixel column of each column of windows.
        paired_scenes: Scenes of the other season that may show the same place.
    """

    layout: Layout
    rows: Sequence[int]
    cols: Sequence[int]
    height: int
    width: int
    paired_scenes: tuple[Layout, ...] = ()

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)

    def __getitem__(self, index: int) -> Window:
        row, col = divmod(index, len(self.cols))
        return Window(self.rows[row], self.cols[col], self.height, self.width)

    def __iter__(self) -> Iterator[Window]:
        return (Window(row, col, self.height, self.width) for row in self.rows for col in self.cols)

    def split(self, max_tiles: int) -> Iterator[WindowBlock]:
        """Yield blocks of at most `max_tiles` windows: square, or whole rows where a file is stored in strips."""
        rows, cols = self.rows, self.cols
        read_whole_rows = self.layout.striped or not self.layout.sources
        across = min(len(cols), max_tiles if read_whole_rows else max(math.isqrt(max_tiles), max_tiles // len(rows)))
        down = max(1, max_tiles // across)
        for top in range(0, len(rows), down):
            for left in range(0, len(cols), across):
                yield replace(self, rows=rows[top : top + down], cols=cols[left : left + across])


def scene_windows(layout: Layout, options: BuildOptions, paired_scenes: tuple[Layout, ...] = ()) -> WindowBlock:
    """Return all windows of a scene; a side shorter than the tile size is kept whole."""
    grid = layout.grid
    height, width = min(options.tile_size, grid.height), min(options.tile_size, grid.width)
    rows, cols = _starts(grid.height, height, options), _starts(grid.width, width, options)
    return WindowBlock(layout, rows, cols, height, width, paired_scenes)


def _starts(length: int, side: int, options: BuildOptions) -> Sequence[int]:
    """Return the first pixels of windows along one side of a scene; with --overlap, the last window ends at its end."""
    if not options.overlap or length == side:
        return range(0, length - side + 1, options.step)
    gaps = -(-length // side) - 1
    return tuple(round(number * (length - side) / gaps) for number in range(gaps + 1))


def window_notes(layouts: Sequence[Layout], options: BuildOptions) -> Iterator[str]:
    """Yield notes on pixels at edges that fill no window, and on scenes that are smaller than a tile."""
    sizes = Counter((layout.grid.height, layout.grid.width) for layout in layouts)
    share, size = _edge_share(sizes, options), options.tile_size
    if share > _MAX_EDGE_SHARE:
        worst = max(sizes, key=lambda lengths: _edge_share({lengths: 1}, options))
        layout = next(layout for layout in layouts if (layout.grid.height, layout.grid.width) == worst)
        where = f"{share:.0%} of all pixels are left out at right and lower edges, e.g. of {_size_of(layout)}"
        sizes = Counter(dict(sizes.most_common(_MAX_SIZES)))
        others = [replace(options, tile_size=other) for other in range(max(8, size * 2 // 3), size * 3 // 2)]
        best = min(others, key=lambda other: (_edge_share(sizes, other), abs(other.tile_size - size)))
        less = _edge_share(sizes, best)
        works = "without --stride, --overlap keeps them all" if options.stride else "--overlap keeps them all"
        yield f"{where}; {works}" + (f", --tile-size {best.tile_size} all but {less:.0%}" if less < share / 2 else "")
    small = [layout for layout in layouts if min(layout.grid.height, layout.grid.width) < size]
    if small:
        count = f"{len(small):,} of {len(layouts):,} scenes"
        yield (
            f"{count} are smaller than --tile-size {size}, e.g. {_size_of(small[0])}; they are kept whole, and "
            "training enlarges their tiles to the encoder's image size"
        )


def _edge_share(sizes: Mapping[tuple[int, int], int], options: BuildOptions) -> float:
    """Return the share of all pixels behind the last window in either direction, of so many scenes of each size."""
    pixels = covered = 0
    for grid, count in sizes.items():
        sides = [min(options.tile_size, length) for length in grid]
        ends = [_starts(length, side, options)[-1] + side for length, side in zip(grid, sides, strict=True)]
        pixels, covered = pixels + count * math.prod(grid), covered + count * math.prod(ends)
    return 1 - covered / pixels


def _size_of(layout: Layout) -> str:
    return f"{layout.scene.name} ({layout.grid.height} × {layout.grid.width})"


def read_region(reader: RasterReader | PictureReader, block: WindowBlock) -> tuple[Window, Tile] | None:
    """Read all windows of a block at once; return None if they lie far apart, or a part of the file is damaged."""
    top, left = block.rows[0], block.cols[0]
    area = Window(top, left, block.rows[-1] - top + block.height, block.cols[-1] - left + block.width)
    if area.height * area.width <= 2 * len(block) * block.height * block.width:
        with suppress(UnreadableImage):
            return area, read_tile(reader, area)
    return None


def read_tile(reader: RasterReader | PictureReader, window: Window, region: tuple[Window, Tile] | None = None) -> Tile:
    """Return one tile, from `region` if it is given, else from the file.

    Raises:
        UnreadableImage: If its part of the file is damaged.
    """
    row, col, height, width = window
    if region is None:
        pixels, valid = reader.read(row, col, height, width)
    else:
        area, (pixels, valid, _) = region
        part = np.s_[..., row - area.row : row - area.row + height, col - area.col : col - area.col + width]
        pixels, valid = pixels[part], None if valid is None else valid[part]
    return Tile(pixels, valid, reader.encoded(height, width) if isinstance(reader, PictureReader) else None)
