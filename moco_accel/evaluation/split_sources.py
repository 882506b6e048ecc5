"""Labelled tiles and their splits, from what moco-eval is told: two sources, or one that is split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.evaluation.baselines import fixed_split, open_labelled, open_side
from moco_accel.evaluation.labelled_pool import Pool
from moco_accel.evaluation.split_rule import SplitRule
from moco_accel.evaluation.splits import (
    TEST_WORDS,
    TRAIN_WORDS,
    VALIDATION_WORDS,
    Split,
    blocks_of,
    check_split,
    split_at_random,
    split_by_blocks,
    split_by_words,
)
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.tiles import Tiles

_PATH_COLUMNS = ("path", "file", "filename", "file_name")
_DEGREES = ("EPSG:4326", "OGC:CRS84")

Say = Callable[[str], None]


def given_split(recipe: Recipe) -> tuple[Pool, Split]:
    """`evaluation.train_source` and `test_source`, as they are. Raises UserError as `open_labelled` does."""
    pool, split = fixed_split(open_labelled(recipe))
    check_split(split, pool.labels, pool.names, f"evaluation.label_column={recipe.evaluation.label_column!r}")
    return pool, split


def drawn_splits(
    recipe: Recipe, data: str, rule: SplitRule, share: float, seeds: int, say: Say
) -> tuple[Pool, list[Split]]:
    """`--data` split by `rule`: a split per seed, or one where nothing is drawn. `say` hears what is worth knowing.

    Raises UserError: columns that are absent, tiles without a label or a place, a class on one side alone.
    """
    if rule.kind == "folder" and (folders := _side_folders(data)):
        sources = dict(zip(("train_source", "test_source"), folders, strict=True))
        say(f"training tiles: {folders[0]}; test tiles: {folders[1]}")
        pool, split = given_split(
            recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=sources)})
        )
        return pool, [split]
    tiles = open_side(data, recipe, "--data")
    column = recipe.evaluation.label_column
    labels, names = tiles.labels(column)
    if without := sum(label is None for label in labels):
        raise UserError(
            f"--label-column={column!r} is empty or negative for {without:,} of {len(labels):,} tiles; leave those out"
        )
    pool = Pool((tiles,), torch.tensor(labels), names)
    splits = _splits(tiles, pool.labels, rule, share, seeds, say)
    for split in splits:
        check_split(split, pool.labels, names, f"--split={rule.text!r}")
    return pool, splits


def _splits(tiles: Tiles, labels: Tensor, rule: SplitRule, share: float, seeds: int, say: Say) -> list[Split]:
    option = f"--split={rule.text!r}"
    if rule.kind == "random":
        return [split_at_random(labels, share, seed) for seed in range(seeds)]
    if rule.kind == "block":
        blocks = blocks_of(_extents(tiles, rule), rule)
        return [split_by_blocks(blocks, labels, share, seed, rule) for seed in range(seeds)]
    words = _words(tiles, rule.column, option) if rule.kind == "column" else _folder_words(tiles, option)
    split, said = split_by_words(words, option)
    if said:
        say(said)
    return [split]


def _side_folders(data: str) -> tuple[str, str] | None:
    """Folders for training and testing directly in `data`; None where it has no such ones."""
    folder = Path(data)
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else {}
    train = next((inside[word] for word in TRAIN_WORDS if word in inside), None)
    test = next((inside[word] for word in TEST_WORDS + VALIDATION_WORDS if word in inside), None)
    return (str(train), str(test)) if train and test else None


def _words(tiles: Tiles, column: str, option: str) -> list[str | None]:
    if column not in tiles.column_names:
        raise UserError(f"{option}: {tiles.source!r} has no column {column!r}; its columns: {_listed(tiles)}")
    values = tiles.column(column)
    if any(isinstance(value, str) for value in values):
        return [None if value is None else str(value) for value in values]
    if not all(value is None or (isinstance(value, int) and not isinstance(value, bool)) for value in values):
        raise UserError(f"{option}: column {column!r} holds no text; one of the words train and test works")
    names = tiles.label_names(column)
    return [None if value is None or value < 0 else names[value] for value in values]


def _folder_words(tiles: Tiles, option: str) -> list[str | None]:
    """The first folder of each tile's path that is called as a side is."""
    column = next((name for name in _PATH_COLUMNS if name in tiles.column_names), None)
    if column is None:
        raise UserError(
            f"{option}: {tiles.source!r} has neither folders named train and test nor a column of paths "
            f"({', '.join(_PATH_COLUMNS)}); --split random or block:5 may work"
        )
    sides = TRAIN_WORDS + TEST_WORDS + VALIDATION_WORDS
    words: list[str | None] = []
    for path in tiles.column(column):
        parts = PurePosixPath(str(path)).parts[:-1]
        words.append(next((part for part in parts if part.lower() in sides), parts[0] if parts else None))
    return words


def _extents(tiles: Tiles, rule: SplitRule) -> Tensor:
    """West, south, east, north of each tile in degrees, float64 [N, 4]; its centre twice where only that is known."""
    names, option = tiles.column_names, f"--split={rule.text!r}"
    if {"bounds", "crs"} <= set(names):
        return _extents_of_bounds(tiles.column("bounds"), tiles.column("crs"), option)
    if {"longitude", "latitude"} <= set(names):
        centres = [tiles.column("longitude"), tiles.column("latitude")]
        _refuse_nowhere([x if y is not None else None for x, y in zip(*centres, strict=True)], option)
        x, y = (torch.tensor(values, dtype=torch.float64) for values in centres)
        return torch.stack([x, y, x, y], dim=1)
    raise UserError(
        f"{option} wants columns bounds and crs, or longitude and latitude; {tiles.source!r} has {_listed(tiles)}"
    )


def _extents_of_bounds(bounds: Sequence[Any], systems: Sequence[Any], option: str) -> Tensor:
    _refuse_nowhere([box if system else None for box, system in zip(bounds, systems, strict=True)], option)
    extents = torch.tensor(bounds, dtype=torch.float64)
    for system in sorted(set(systems) - set(_DEGREES)):
        rows = torch.tensor([other == system for other in systems])
        extents[rows] = _in_degrees(extents[rows], system, option)
    return extents


def _in_degrees(extents: Tensor, system: str, option: str) -> Tensor:
    """The corners' least and largest longitude and latitude."""
    try:
        from rasterio.warp import transform
    except ImportError:
        raise UserError(
            f"{option}: bounds in {system[:60]} need rasterio to become degrees; pip install 'moco-accel[geo]' works"
        ) from None
    x, y = extents[:, [0, 0, 2, 2]].flatten().tolist(), extents[:, [1, 3, 1, 3]].flatten().tolist()
    longitude, latitude = (
        torch.tensor(c, dtype=torch.float64).view(-1, 4) for c in transform(system, "EPSG:4326", x, y)
    )
    return torch.stack([longitude.amin(1), latitude.amin(1), longitude.amax(1), latitude.amax(1)], dim=1)


def _refuse_nowhere(places: Sequence[Any], option: str) -> None:
    if nowhere := sum(place is None for place in places):
        raise UserError(
            f"{option}: {nowhere:,} of {len(places):,} tiles have no place on Earth; tiles cut from GeoTIFF work, or "
            "--split random"
        )


def _listed(tiles: Tiles) -> str:
    return ", ".join(tiles.column_names)
