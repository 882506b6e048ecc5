"""Draw a contact sheet of up to 48 tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moco_accel.common.drawing import RgbStretch
from moco_accel.images.decoding import DamagedTile
from moco_accel.inspection.inspect_tiles import LABEL_COLUMN, Inspection
from moco_accel.inspection.picture_grid import SHEET_COLUMNS, SHEET_ROWS, Cell, channel_names, draw_sheet
from moco_accel.recipe.bands import picture_bands
from moco_accel.tiles.statistics import sample_indices
from moco_accel.tiles.tiles import Tiles


def write_contact_sheet(path: Path, found: Inspection) -> None:
    """Write a PNG of evenly spaced tiles, with the index and class under each.

    All tiles share one stretch: 8-bit values are drawn unchanged, others from each band's 2nd percentile (black) to its
    98th (white).
    """
    tiles, stretch = found.tiles, _stretch_of(found)
    indices = sample_indices(len(tiles), SHEET_COLUMNS * SHEET_ROWS)
    cells = []
    for index, caption in zip(indices, tile_captions(tiles, indices, found.labels is not None), strict=True):
        try:
            cells.append(Cell(stretch.to_rgb(tiles[index].numpy()), [caption]))
        except DamagedTile:
            cells.append(Cell(None, [caption]))
    title = f"{tiles.source}: {len(cells):,} of {len(tiles):,} tiles"
    shown = "as stored" if found.dtype == "uint8" else "from each band's 2nd percentile to its 98th"
    draw_sheet(path, title, f"{channel_names(stretch.bands, found.band_names)}, {shown}", cells)


def tile_captions(tiles: Tiles, indices: Sequence[int], has_classes: bool) -> list[str]:
    """Return each tile's index, followed by its class if it has one."""
    if not has_classes:
        return [str(index) for index in indices]
    labels, names = tiles.labels(LABEL_COLUMN)
    return [str(index) if (label := labels[index]) is None else f"{index}  {names[label]}" for index in indices]


def _stretch_of(found: Inspection) -> RgbStretch:
    bands = picture_bands(found.tiles.bands, len(found.statistics.mean), found.sensor)
    if found.dtype == "uint8":
        return RgbStretch(bands, (0, 0, 0), (255, 255, 255))
    low, high = (found.statistics.percentiles[percent] for percent in ("2", "98"))
    return RgbStretch(bands, [low[band] for band in bands], [high[band] for band in bands])
