"""48 tiles of a source on one page."""

from __future__ import annotations

from pathlib import Path

from moco_accel.bands import picture_bands
from moco_accel.drawing import Shown
from moco_accel.looking.inspection import LABEL_COLUMN, Inspection
from moco_accel.looking.sheets import SHEET_COLUMNS, SHEET_ROWS, Cell, draw_sheet
from moco_accel.reading.decoding import DamagedTile
from moco_accel.reading.tiles import Tiles
from moco_accel.tile_statistics import sample_indices


def write_sheet(path: Path, tiles: Tiles, found: Inspection) -> None:
    """A PNG of tiles spread evenly, their index and label under each, all with the same colours for the same values.

    8-bit values are shown as they are, others from the 2nd percentile (black) to the 98th (white) of each band.
    """
    shown = shown_bands(found)
    labels, names = tiles.labels(LABEL_COLUMN) if LABEL_COLUMN in tiles.column_names else (None, [])
    cells = []
    for index in sample_indices(len(tiles), SHEET_COLUMNS * SHEET_ROWS):
        label = None if labels is None else labels[index]
        caption = f"{index}" if label is None else f"{index}  {names[label]}"
        try:
            cells.append(Cell(shown.colours(tiles[index].numpy()), [caption]))
        except DamagedTile:
            cells.append(Cell(None, [caption]))
    title = f"{found.source}: {len(cells):,} of {found.tiles:,} tiles"
    draw_sheet(path, title, f"{shown.name}, {stretch_text(found)}", cells)


def shown_bands(found: Inspection) -> Shown:
    """Three bands as a picture, and the stored values that are black and white in it."""
    bands = picture_bands(found.bands, len(found.statistics.mean), found.sensor)
    names = ", ".join(found.band_names[band] for band in bands)
    if found.dtype == "uint8":
        return Shown(names, bands, (0, 0, 0), (255, 255, 255))
    low, high = (found.statistics.percentiles[percent] for percent in ("2", "98"))
    return Shown(names, bands, [low[band] for band in bands], [high[band] for band in bands])


def stretch_text(found: Inspection) -> str:
    return "as stored" if found.dtype == "uint8" else "from each band's 2nd percentile to its 98th"
