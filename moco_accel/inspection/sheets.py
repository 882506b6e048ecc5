"""Pictures of tiles: a contact sheet, and a grid of tiles beside the views that training makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from moco_accel.common.drawing import FAINT, INK, PAPER, RED, fitting, font, save_png, square
from moco_accel.common.pixels import Pixels

SHEET_COLUMNS, SHEET_ROWS = 8, 6
_MARGIN, _GAP, _GROUP_GAP = 28, 10, 36
_SHEET_SIDE, _SHEET_CAPTION, _SHEET_HEAD = 144, 24, 84
_VIEW_SIDE, _VIEW_HEAD, _LINE = 224, 116, 17
_SUBTITLE_SIZES = (15, 13)

Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels of a picture."""


@dataclass(frozen=True)
class Cell:
    """One picture [height, width, 3] uint8, or None for a damaged tile, and the lines under it.

    `underline` is a colour; `boxes` are outlined, each in its colour.
    """

    colours: Pixels | None
    caption: Sequence[str] = ()
    underline: str | None = None
    boxes: Sequence[tuple[Box, str]] = ()


def draw_sheet(path: Path, title: str, subtitle: str, cells: Sequence[Cell]) -> None:
    """Write a PNG of up to SHEET_ROWS rows of SHEET_COLUMNS cells."""
    columns, rows = min(SHEET_COLUMNS, len(cells)), -(-len(cells) // SHEET_COLUMNS)
    width = max(2 * _MARGIN + columns * (_SHEET_SIDE + _GAP) - _GAP, 640)
    height = _SHEET_HEAD + rows * (_SHEET_SIDE + _SHEET_CAPTION + _GAP) - _GAP + _MARGIN
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    _draw_title(draw, title, subtitle, width)
    for place, cell in enumerate(cells):
        _draw_cell(picture, draw, cell, sheet_corner(place), _SHEET_SIDE)
    save_png(picture, path)


def sheet_corner(place: int) -> tuple[int, int]:
    """Left and top of the `place`-th cell of a sheet."""
    row, column = divmod(place, SHEET_COLUMNS)
    return _MARGIN + column * (_SHEET_SIDE + _GAP), _SHEET_HEAD + row * (_SHEET_SIDE + _SHEET_CAPTION + _GAP)


def draw_views(
    path: Path,
    title: str,
    subtitle: str,
    heads: Sequence[Sequence[tuple[str, str]]],
    rows: Sequence[Sequence[Sequence[Cell]]],
) -> None:
    """Write a PNG with a row per tile and, in it, groups of cells; `heads` are (text, colour) over each of a group."""
    row_height = _VIEW_SIDE + 8 + _LINE * max(len(cell.caption) for row in rows for group in row for cell in group)
    columns = len(heads[0])
    width = view_corner(columns, len(heads), 0, 0, 0)[0] - _GROUP_GAP + _MARGIN
    picture = Image.new("RGB", (width, _VIEW_HEAD + len(rows) * (row_height + _GAP) - _GAP + _MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    _draw_title(draw, title, subtitle, width)
    for group, head in enumerate(heads):
        for column, (text, colour) in enumerate(head):
            left, top = view_corner(columns, group, column, 0, row_height)
            text, chosen = fitting(text, _VIEW_SIDE, (17, 16, 15, 14))
            draw.text((left, top - 27), text, colour, chosen)
    for number, row in enumerate(rows):
        for group, cells in enumerate(row):
            for column, cell in enumerate(cells):
                _draw_cell(picture, draw, cell, view_corner(columns, group, column, number, row_height), _VIEW_SIDE)
    save_png(picture, path)


def view_corner(columns: int, group: int, column: int, row: int, row_height: int) -> tuple[int, int]:
    """Left and top of a picture in the grid of `draw_views`, with `columns` pictures in a group."""
    left = _MARGIN + group * (columns * (_VIEW_SIDE + _GAP) - _GAP + _GROUP_GAP) + column * (_VIEW_SIDE + _GAP)
    return left, _VIEW_HEAD + row * (row_height + _GAP)


def name_picture(bands: Sequence[int], names: Sequence[str]) -> str:
    """The names of the bands shown as red, green and blue; of one shown as grey, its own."""
    return ", ".join(dict.fromkeys(names[band] for band in bands))


def _draw_title(draw: ImageDraw.ImageDraw, title: str, subtitle: str, width: int) -> None:
    room = width - 2 * _MARGIN
    text, chosen = fitting(title, room, (20, 18, 16))
    draw.text((_MARGIN, 18), text, INK, chosen)
    lines = in_two_lines(subtitle, room)
    for number, line in enumerate(lines):
        text, chosen = fitting(line, room, _SUBTITLE_SIZES[len(lines) - 1 :])
        draw.text((_MARGIN, 46 + number * _LINE), text, FAINT, chosen)


def in_two_lines(text: str, width: float) -> list[str]:
    """`text` itself where it fits in the smallest type; else cut after the last word that does."""
    smallest = font(_SUBTITLE_SIZES[-1])
    words = text.split(" ")
    fits = (count for count in range(len(words), 0, -1) if smallest.getlength(" ".join(words[:count])) <= width)
    count = next(fits, 1)
    return [line for line in (" ".join(words[:count]), " ".join(words[count:])) if line]


def _draw_cell(picture: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, corner: tuple[int, int], side: int) -> None:
    left, top = corner
    if cell.colours is None:
        draw.rectangle((left, top, left + side - 1, top + side - 1), fill="#f6e7e6", outline=RED)
        draw.text((left + side / 2, top + side / 2), "damaged", RED, font(15), anchor="mm")
    else:
        picture.paste(square(cell.colours, side), corner)
        for box, colour in cell.boxes:
            _draw_box(draw, box, colour, corner, side, cell.colours.shape)
    if cell.underline:
        draw.rectangle((left, top + side, left + side - 1, top + side + 2), fill=cell.underline)
    for number, line in enumerate(cell.caption):
        text, chosen = fitting(line, side, (13, 12))
        draw.text((left, top + side + 5 + number * _LINE), text, FAINT if number else INK, chosen)


def _draw_box(
    draw: ImageDraw.ImageDraw, box: Box, colour: str, corner: tuple[int, int], side: int, shape: Sequence[int]
) -> None:
    scale = side / max(shape[:2])
    left = corner[0] + (side - shape[1] * scale) / 2 + box[1] * scale  # the picture is centred in its square
    top = corner[1] + (side - shape[0] * scale) / 2 + box[0] * scale
    right, bottom = left + box[3] * scale - 1, top + box[2] * scale - 1
    draw.rectangle((left, top, right, bottom), outline=PAPER, width=4)
    draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=colour, width=2)
