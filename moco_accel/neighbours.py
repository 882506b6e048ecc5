"""A picture of what features take for alike: test tiles, and their nearest training tiles under two encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from moco_accel.shards import Tiles

NUM_QUERIES = 8
NUM_NEIGHBOURS = 5

_TILE, _FRAME, _GAP, _PANEL_GAP, _MARGIN = 128, 4, 8, 40, 28
_LABEL_HEIGHT, _HEAD_HEIGHT = 22, 104
_CELL = _TILE + 2 * _FRAME
_PAPER, _INK, _FAINT = "#ffffff", "#1d2733", "#66727f"
_SAME, _OTHER, _NEUTRAL = "#1f9d63", "#d8433b", "#1d2733"


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
    three bands the first three are shown.
    """
    width = 2 * _MARGIN + _CELL + len(panels) * (_PANEL_GAP + NUM_NEIGHBOURS * (_CELL + _GAP) - _GAP)
    row_height = _CELL + _LABEL_HEIGHT + _GAP
    picture = Image.new("RGB", (width, _HEAD_HEIGHT + len(queries) * row_height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(picture)
    lefts = [
        _MARGIN + _CELL + _PANEL_GAP + n * (_PANEL_GAP + NUM_NEIGHBOURS * (_CELL + _GAP) - _GAP)
        for n in range(len(panels))
    ]
    _draw_head(draw, caption, panels, lefts, _agreement(labels, queries, panels))
    for row, query in enumerate(queries):
        top, truth = _HEAD_HEIGHT + row * row_height, labels[1][query]
        _draw_tile(picture, draw, test[query], (_MARGIN, top), names[truth], _NEUTRAL)
        for left, panel in zip(lefts, panels, strict=True):
            for place, index in enumerate(panel.neighbours[row].tolist()):
                label = labels[0][index]
                corner = (left + place * (_CELL + _GAP), top)
                _draw_tile(picture, draw, train[index], corner, names[label], _SAME if label == truth else _OTHER)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    picture.save(partial, "png")
    partial.replace(path)


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
    draw.text((_MARGIN, 18), caption, _INK, _font(20))
    draw.text((_MARGIN, _HEAD_HEIGHT - 33), "test tile", _INK, _font(18))
    for panel, left, share in zip(panels, lefts, agreement, strict=True):
        draw.text((left, _HEAD_HEIGHT - 33), panel.heading, _INK, _font(18))
        right = left + NUM_NEIGHBOURS * (_CELL + _GAP) - _GAP
        draw.text((right, _HEAD_HEIGHT - 31), f"{share} of the same class", _FAINT, _font(16), anchor="ra")


def _draw_tile(
    picture: Image.Image, draw: ImageDraw.ImageDraw, tile: Tensor, corner: tuple[int, int], name: str, colour: str
) -> None:
    left, top = corner
    draw.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), fill=colour)
    picture.paste(_image(tile), (left + _FRAME, top + _FRAME))
    name, font = _fitting(name)
    draw.text((left + _CELL / 2, top + _CELL + 3), name, colour, font, anchor="ma")


def _fitting(name: str) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """`name` in the largest type that fits under a tile; cut short only where the smallest does not."""
    for size in (14, 13, 12):
        if _font(size).getlength(name) <= _CELL:
            return name, _font(size)
    while _font(size).getlength(name) > _CELL:
        name = name.rstrip("…")[:-1] + "…"
    return name, _font(size)


def _image(tile: Tensor) -> Image.Image:
    bands = tile if tile.shape[0] >= 3 else tile[:1].expand(3, -1, -1)
    image = Image.fromarray(np.ascontiguousarray(bands[:3].permute(1, 2, 0).numpy()))
    enlarge = max(image.size) <= _TILE
    return image.resize((_TILE, _TILE), Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
