"""48 tiles of a source on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moco_accel.common.drawing import Shown
from moco_accel.images.decoding import DamagedTile
from moco_accel.inspection.inspection import LABEL_COLUMN, Inspection
from moco_accel.inspection.sheets import SHEET_COLUMNS, SHEET_ROWS, Cell, draw_sheet, name_picture
from moco_accel.recipe.bands import picture_bands
from moco_accel.tiles.statistics import sample_indices
from moco_accel.tiles.tiles import Tiles


def write_sheet(path: Path, tiles: Tiles, found: Inspection) -> None:
    """A PNG of tiles spread evenly, their index and label under each, all with the same colours for the same values.

    8-bit values are shown as they are, others from the 2nd percentile (black) to the 98th (white) of each band.
    """
    shown = shown_bands(found)
    indices = sample_indices(len(tiles), SHEET_COLUMNS * SHEET_ROWS)
    cells = []
    for index, caption in zip(indices, captions(tiles, indices, found.labels is not None), strict=True):
        try:
            cells.append(Cell(shown.colours(tiles[index].numpy()), [caption]))
        except DamagedTile:
            cells.append(Cell(None, [caption]))
    title = f"{found.source}: {len(cells):,} of {found.tiles:,} tiles"
    draw_sheet(path, title, f"{name_picture(shown.bands, found.band_names)}, {stretch_text(found)}", cells)


def captions(tiles: Tiles, indices: Sequence[int], has_classes: bool) -> list[str]:
    """Each tile's index, and, where tiles have classes, its class."""
    if not has_classes:
        return [str(index) for index in indices]
    labels, names = tiles.labels(LABEL_COLUMN)
    classes = (labels[index] for index in indices)
    return [
        f"{index}" if label is None else f"{index}  {names[label]}"
        for index, label in zip(indices, classes, strict=True)
    ]


def shown_bands(found: Inspection) -> Shown:
    """Three bands as a picture, and the stored values that are black and white in it."""
    bands = picture_bands(found.bands, len(found.statistics.mean), found.sensor)
    if found.dtype == "uint8":
        return Shown(bands, (0, 0, 0), (255, 255, 255))
    low, high = (found.statistics.percentiles[percent] for percent in ("2", "98"))
    return Shown(bands, [low[band] for band in bands], [high[band] for band in bands])


def stretch_text(found: Inspection) -> str:
    return "as stored" if found.dtype == "uint8" else "from each band's 2nd percentile to its 98th"
