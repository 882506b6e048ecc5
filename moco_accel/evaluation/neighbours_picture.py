"""Draw test tiles beside their nearest training tiles, for the pretrained encoder and at random initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from moco_accel.common.drawing import (
    FAINT,
    GREEN,
    INK,
    PAPER,
    RED,
    common_stretch,
    fit_into_square,
    fit_text,
    load_font,
    save_png,
)
from moco_accel.evaluation.baselines import BaselineComparison
from moco_accel.evaluation.knn import nearest_neighbours
from moco_accel.evaluation.labelled_tiles import LabelledPool
from moco_accel.recipe.bands import picture_bands
from moco_accel.recipe.schema import Recipe

_NUM_QUERIES = 8
_NUM_NEIGHBOURS = 5

_TILE, _FRAME, _GAP, _PANEL_GAP, _MARGIN = 128, 4, 8, 40, 28
_LABEL_HEIGHT, _HEADER_HEIGHT = 22, 104
_HEADING_TOP = _HEADER_HEIGHT - 33
_CELL = _TILE + 2 * _FRAME
_ROW_HEIGHT = _CELL + _LABEL_HEIGHT + _GAP
_PANEL_WIDTH = _NUM_NEIGHBOURS * (_CELL + _GAP) - _GAP


def draw_neighbours(path: Path, recipe: Recipe, comparison: BaselineComparison) -> None:
    """Write a PNG with a few test tiles and their nearest training tiles, for the first split."""
    pool, split = comparison.pool, comparison.splits[0]
    queries = choose_queries(pool.labels[split.test].tolist())
    panels = [
        (heading, split.train[nearest_neighbours(train, test[queries], _NUM_NEIGHBOURS)])
        for heading, (train, test) in (
            ("nearest training tiles, pretrained", comparison.split_features("")),
            ("at random initialisation", comparison.split_features("_random_init")),
        )
    ]
    accuracies = comparison.accuracies
    caption = (
        f"{recipe.encoder.name}: kNN-{recipe.evaluation.neighbours} accuracy on {len(split.test):,} test tiles: "
        f"pretrained {accuracies['knn_top1']:.1%}, random initialisation {accuracies['knn_top1_random_init']:.1%}, "
        f"mean colour {accuracies['knn_top1_mean_colour']:.1%}"
    )
    draw_panels(path, pool, split.test[queries].tolist(), panels, caption)


def choose_queries(labels: Sequence[int], num_queries: int = _NUM_QUERIES) -> list[int]:
    """Choose tiles evenly over the classes and within each class; return their indices, the same on every call."""
    classes = sorted(set(labels))
    chosen = [classes[round(place)] for place in np.linspace(0, len(classes) - 1, min(num_queries, len(classes)))]
    rounds = -(-num_queries // len(chosen))
    queries: list[int] = []
    for turn in range(rounds):
        for label in chosen[: num_queries - len(queries)]:
            members = [index for index, other in enumerate(labels) if other == label]
            queries.append(members[len(members) * (turn + 1) // (rounds + 1)])
    return queries


def draw_panels(
    path: Path, pool: LabelledPool, queries: Sequence[int], panels: Sequence[tuple[str, Tensor]], caption: str
) -> None:
    """Write a PNG with a row per query: the test tile, then its neighbours in each panel, nearest first.

    A panel has a heading and indices of training tiles, int64 [queries, 5]. A green frame marks a neighbour of the
    query's class, a red frame any other. Tiles of more than three bands are drawn in true colour if the red, green and
    blue bands are known, else by their first three bands.
    """
    tiles = [pool[query].numpy() for query in queries]
    stretch = common_stretch(tiles, picture_bands(pool.bands, len(tiles[0]), pool.sources[0].sensor))
    width = 2 * _MARGIN + _CELL + len(panels) * (_PANEL_GAP + _PANEL_WIDTH)
    picture = Image.new("RGB", (width, _HEADER_HEIGHT + len(queries) * _ROW_HEIGHT + _MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 18), caption, INK, load_font(20))
    draw.text((_MARGIN, _HEADING_TOP), "test tile", INK, load_font(18))

    def draw_tile(index: int, left: int, row: int, frame: str) -> None:
        top = _HEADER_HEIGHT + row * _ROW_HEIGHT
        draw.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), fill=frame)
        tile = stretch.to_rgb(pool[index].numpy())
        picture.paste(fit_into_square(tile, _TILE), (left + _FRAME, top + _FRAME))
        name, font = fit_text(pool.names[int(pool.labels[index])], _CELL)
        draw.text((left + _CELL / 2, top + _CELL + 3), name, frame, font, anchor="ma")

    for row, query in enumerate(queries):
        draw_tile(query, _MARGIN, row, INK)
    for number, (heading, neighbours) in enumerate(panels):
        left = _MARGIN + _CELL + _PANEL_GAP + number * (_PANEL_GAP + _PANEL_WIDTH)
        same = pool.labels[neighbours] == pool.labels[list(queries)][:, None]
        count = f"{int(same.sum())} of {same.numel()} of the same class"
        draw.text((left, _HEADING_TOP), heading, INK, load_font(18))
        draw.text((left + _PANEL_WIDTH, _HEADING_TOP + 2), count, FAINT, load_font(16), anchor="ra")
        for row, place in np.ndindex(*same.shape):
            frame = GREEN if same[row, place] else RED
            draw_tile(int(neighbours[row, place]), left + place * (_CELL + _GAP), row, frame)
    save_png(picture, path)
