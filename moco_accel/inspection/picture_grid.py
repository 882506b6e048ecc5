"""Draw pictures in a grid: a contact sheet, and tiles beside their views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from moco_accel.common.drawing import FAINT, INK, PAPER, RED, RgbStretch, fit_into_square, fit_text, load_font, save_png
from moco_accel.common.pixels import Pixels
from moco_accel.images.headers import DamagedTile
from moco_accel.inspection.inspect_tiles import LABEL_COLUMN, Inspection
from moco_accel.recipe.bands import picture_bands
from moco_accel.tiles.statistics import sample_indices
from moco_accel.tiles.tiles import Tiles

_SHEET_COLUMNS, _SHEET_ROWS = 8, 6
_MARGIN, _GAP, _GROUP_GAP = 28, 10, 36
_SHEET_SIDE, _SHEET_CAPTION, _SHEET_HEAD = 144, 24, 84
_VIEW_SIDE, _VIEW_HEAD, _LINE = 224, 116, 17
_SUBTITLE_SIZES = (15, 13)

Box = tuple[int, int, int, int]  # top, left, height and width, in pixels of a picture


@dataclass(frozen=True)
class Cell:
    """One picture and the lines under it.

    Attributes:
        colours: [height, width, 3] uint8, or None for a damaged tile.
        underline: Colour of a bar under the picture.
        boxes: Boxes to outline, each with its colour.
    """

    colours: Pixels | None
    caption: Sequence[str] = ()
    underline: str | None = None
    boxes: Sequence[tuple[Box, str]] = ()


def write_contact_sheet(path: Path, found: Inspection) -> None:
    """Write a PNG of up to 48 evenly spaced tiles, with the index and class under each.

    All tiles share one stretch: 8-bit values are drawn unchanged, others from each band's 2nd percentile (black) to its
    98th (white).
    """
    tiles, stretch = found.tiles, _stretch_of(found)
    indices = sample_indices(len(tiles), _SHEET_COLUMNS * _SHEET_ROWS)
    cells = []
    for index, caption in zip(indices, tile_captions(tiles, indices, found.labels is not None), strict=True):
        try:
            cells.append(Cell(stretch.to_rgb(tiles[index].numpy()), [caption]))
        except DamagedTile:
            cells.append(Cell(None, [caption]))
    title = f"{tiles.source}: {len(cells):,} of {len(tiles):,} tiles"
    shown = "as stored" if found.dtype == "uint8" else "from each band's 2nd percentile to its 98th"
    subtitle = f"{channel_names(stretch.bands, found.band_names)}, {shown}"
    columns, rows = min(_SHEET_COLUMNS, len(cells)), -(-len(cells) // _SHEET_COLUMNS)
    width = max(2 * _MARGIN + columns * (_SHEET_SIDE + _GAP) - _GAP, 640)
    height = _SHEET_HEAD + rows * (_SHEET_SIDE + _SHEET_CAPTION + _GAP) - _GAP + _MARGIN
    picture = _titled_picture(title, subtitle, width, height)
    for number, cell in enumerate(cells):
        _draw_cell(picture, cell, sheet_corner(number), _SHEET_SIDE)
    save_png(picture, path)


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


def sheet_corner(number: int) -> tuple[int, int]:
    """Return left and top of a cell of a contact sheet, counted from 0."""
    row, column = divmod(number, _SHEET_COLUMNS)
    return _MARGIN + column * (_SHEET_SIDE + _GAP), _SHEET_HEAD + row * (_SHEET_SIDE + _SHEET_CAPTION + _GAP)


def draw_views(
    path: Path,
    title: str,
    subtitle: str,
    heads: Sequence[Sequence[tuple[str, str]]],
    rows: Sequence[Sequence[Sequence[Cell]]],
) -> None:
    """Write a PNG of rows (tiles) of groups (stretches) of cells.

    Args:
        subtitle: Second line, wrapped if it is too long.
        heads: Text and colour above each column, per group.
        rows: Cells by row, group and column.
    """
    row_height = _VIEW_SIDE + 8 + _LINE * max(len(cell.caption) for row in rows for group in row for cell in group)
    columns = len(heads[0])
    width = view_corner(columns, len(heads), 0, 0, 0)[0] - _GROUP_GAP + _MARGIN
    picture = _titled_picture(title, subtitle, width, _VIEW_HEAD + len(rows) * (row_height + _GAP) - _GAP + _MARGIN)
    draw = ImageDraw.Draw(picture)
    for group, head in enumerate(heads):
        for column, (text, colour) in enumerate(head):
            left, top = view_corner(columns, group, column, 0, row_height)
            text, chosen = fit_text(text, _VIEW_SIDE, (17, 16, 15, 14))
            draw.text((left, top - 27), text, colour, chosen)
    for number, row in enumerate(rows):
        for group, cells in enumerate(row):
            for column, cell in enumerate(cells):
                _draw_cell(picture, cell, view_corner(columns, group, column, number, row_height), _VIEW_SIDE)
    save_png(picture, path)


def view_corner(columns: int, group: int, column: int, row: int, row_height: int) -> tuple[int, int]:
    """Return left and top of a picture drawn by `draw_views` with `columns` pictures per group."""
    left = _MARGIN + group * (columns * (_VIEW_SIDE + _GAP) - _GAP + _GROUP_GAP) + column * (_VIEW_SIDE + _GAP)
    return left, _VIEW_HEAD + row * (row_height + _GAP)


def channel_names(bands: Sequence[int], names: Sequence[str]) -> str:
    """Return the names of the bands drawn as red, green and blue, or one name for a grey picture."""
    return ", ".join(dict.fromkeys(names[band] for band in bands))


def _titled_picture(title: str, subtitle: str, width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height), PAPER)
    draw, room = ImageDraw.Draw(picture), width - 2 * _MARGIN
    text, chosen = fit_text(title, room, (20, 18, 16))
    draw.text((_MARGIN, 18), text, INK, chosen)
    lines = wrap_in_two(subtitle, room)
    for number, line in enumerate(lines):
        text, chosen = fit_text(line, room, _SUBTITLE_SIZES[len(lines) - 1 :])
        draw.text((_MARGIN, 46 + number * _LINE), text, FAINT, chosen)
    return picture


def wrap_in_two(text: str, width: float) -> list[str]:
    """Return one line, or two if the text is too wide in the smallest size."""
    smallest = load_font(_SUBTITLE_SIZES[-1])
    words = text.split(" ")
    fits = (count for count in range(len(words), 0, -1) if smallest.getlength(" ".join(words[:count])) <= width)
    count = next(fits, 1)
    return [line for line in (" ".join(words[:count]), " ".join(words[count:])) if line]


def _draw_cell(picture: Image.Image, cell: Cell, corner: tuple[int, int], side: int) -> None:
    draw, (left, top) = ImageDraw.Draw(picture), corner
    if cell.colours is None:
        draw.rectangle((left, top, left + side - 1, top + side - 1), fill="#f6e7e6", outline=RED)
        draw.text((left + side / 2, top + side / 2), "damaged", RED, load_font(15), anchor="mm")
    else:
        picture.paste(fit_into_square(cell.colours, side), corner)
        for box, colour in cell.boxes:
            _draw_box(draw, box, colour, corner, side, cell.colours.shape)
    if cell.underline:
        draw.rectangle((left, top + side, left + side - 1, top + side + 2), fill=cell.underline)
    for number, line in enumerate(cell.caption):
        text, chosen = fit_text(line, side, (13, 12))
        draw.text((left, top + side + 5 + number * _LINE), text, FAINT if number else INK, chosen)


def _draw_box(
    draw: ImageDraw.ImageDraw, box: Box, colour: str, corner: tuple[int, int], side: int, shape: Sequence[int]
) -> None:
    scale = side / max(shape[:2])
    left = corner[0] + (side - shape[1] * scale) / 2 + box[1] * scale  # pictures are centred in their square
    top = corner[1] + (side - shape[0] * scale) / 2 + box[0] * scale
    right, bottom = left + box[3] * scale - 1, top + box[2] * scale - 1
    draw.rectangle((left, top, right, bottom), outline=PAPER, width=4)
    draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=colour, width=2)
