"""A picture of what features take for alike: test tiles, and their nearest training tiles under two encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from moco_accel.common.drawing import (
    FAINT,
    GREEN,
    INK,
    PAPER,
    RED,
    Shown,
    fitting,
    font,
    save_png,
    shown_together,
    square,
)
from moco_accel.recipe.bands import picture_bands

if TYPE_CHECKING:
    from moco_accel.tiles.tiles import Tiles

NUM_QUERIES = 8
NUM_NEIGHBOURS = 5

_TILE, _FRAME, _GAP, _PANEL_GAP, _MARGIN = 128, 4, 8, 40, 28
_LABEL_HEIGHT, _HEAD_HEIGHT = 22, 104
_CELL = _TILE + 2 * _FRAME
_SAME, _OTHER, _NEUTRAL = GREEN, RED, INK


@dataclass(frozen=True)
class Panel:
    """One encoder's answer: `neighbours` are indices [queries, NUM_NEIGHBOURS] of training tiles."""

    heading: str
    neighbours: Tensor


def choose_queries(labels: Sequence[int], num_queries: int = NUM_QUERIES) -> list[int]:
    """Indices of test tiles spread over the classes and over each class: the same ones on every call, none picked."""
    classes = sorted(set(labels))
    spread = [classes[round(place)] for place in np.linspace(0, len(classes) - 1, min(num_queries, len(classes)))]
    rounds = -(-num_queries // len(spread))
    queries: list[int] = []
    for turn in range(rounds):
        for label in spread[: num_queries - len(queries)]:
            members = [index for index, other in enumerate(labels) if other == label]
            queries.append(members[len(members) * (turn + 1) // (rounds + 1)])
    return queries


def draw_neighbours(
    path: Path,
    train: Tiles,
    test: Tiles,
    labels: tuple[Sequence[int], Sequence[int]],
    names: Sequence[str],
    queries: Sequence[int],
    panels: Sequence[Panel],
    caption: str,
) -> None:
    """Write a PNG with a row per query: the test tile, then its neighbours in each panel, nearest first.

    `labels` are those of `train` and `test`. A green frame is the query's class, a red one another. Of more than
    three bands true colour is shown where their names and the sensor tell, else the first three.
    """
    first = [test[query].numpy() for query in queries]
    shown = shown_together(first, picture_bands(test.bands, len(first[0]), test.sensor))
    width = 2 * _MARGIN + _CELL + len(panels) * (_PANEL_GAP + NUM_NEIGHBOURS * (_CELL + _GAP) - _GAP)
    row_height = _CELL + _LABEL_HEIGHT + _GAP
    picture = Image.new("RGB", (width, _HEAD_HEIGHT + len(queries) * row_height + _MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    lefts = [
        _MARGIN + _CELL + _PANEL_GAP + n * (_PANEL_GAP + NUM_NEIGHBOURS * (_CELL + _GAP) - _GAP)
        for n in range(len(panels))
    ]
    _draw_head(draw, caption, panels, lefts, _agreement(labels, queries, panels))
    for row, query in enumerate(queries):
        top, truth = _HEAD_HEIGHT + row * row_height, labels[1][query]
        _draw_tile(picture, draw, shown, test[query], (_MARGIN, top), names[truth], _NEUTRAL)
        for left, panel in zip(lefts, panels, strict=True):
            for place, index in enumerate(panel.neighbours[row].tolist()):
                label = labels[0][index]
                corner = (left + place * (_CELL + _GAP), top)
                colour = _SAME if label == truth else _OTHER
                _draw_tile(picture, draw, shown, train[index], corner, names[label], colour)
    save_png(picture, path)


def _agreement(
    labels: tuple[Sequence[int], Sequence[int]], queries: Sequence[int], panels: Sequence[Panel]
) -> list[str]:
    """`31 of 40` neighbours of the query's class, for each panel."""
    found = []
    for panel in panels:
        pairs = [
            (labels[1][query], labels[0][i])
            for query, row in zip(queries, panel.neighbours.tolist(), strict=True)
            for i in row
        ]
        found.append(f"{sum(truth == label for truth, label in pairs)} of {len(pairs)}")
    return found


def _draw_head(
    draw: ImageDraw.ImageDraw, caption: str, panels: Sequence[Panel], lefts: Sequence[int], agreement: Sequence[str]
) -> None:
    draw.text((_MARGIN, 18), caption, INK, font(20))
    draw.text((_MARGIN, _HEAD_HEIGHT - 33), "test tile", INK, font(18))
    for panel, left, share in zip(panels, lefts, agreement, strict=True):
        draw.text((left, _HEAD_HEIGHT - 33), panel.heading, INK, font(18))
        right = left + NUM_NEIGHBOURS * (_CELL + _GAP) - _GAP
        draw.text((right, _HEAD_HEIGHT - 31), f"{share} of the same class", FAINT, font(16), anchor="ra")


def _draw_tile(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    shown: Shown,
    tile: Tensor,
    corner: tuple[int, int],
    name: str,
    colour: str,
) -> None:
    left, top = corner
    draw.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), fill=colour)
    picture.paste(square(shown.colours(tile.numpy()), _TILE), (left + _FRAME, top + _FRAME))
    name, chosen = fitting(name, _CELL)
    draw.text((left + _CELL / 2, top + _CELL + 3), name, colour, chosen, anchor="ma")
