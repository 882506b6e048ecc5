"""Open the labelled tiles that moco-eval is given, and split them: two sources, or one source and a split rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.evaluation.labelled_tiles import LabelledPool, open_labelled_source, open_labelled_tiles
from moco_accel.evaluation.split_rule import SplitRule
from moco_accel.evaluation.splits import (
    SET_NAMES,
    Split,
    check_split,
    split_at_random,
    split_by_blocks,
    split_by_names,
)
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.tiles import Tiles

_PATH_COLUMNS = ("path", "file", "filename", "file_name")
_CRS_IN_DEGREES = ("EPSG:4326", "OGC:CRS84")

Log = Callable[[str], None]


def open_and_split(
    recipe: Recipe, data: str | None, rule: SplitRule | None, test_share: float, seeds: int, log: Log
) -> tuple[LabelledPool, list[Split]]:
    """Open the recipe's labelled tiles, or the source `data` and split it by `rule`; notes on the split go to `log`.

    Returns:
        All tiles, and one split per seed, or a single one if the split is not random.

    Raises:
        UserError: If a source cannot be opened, a column is missing, a tile has no label or no coordinates, or a set
            lacks a class.
    """
    if data is None or rule is None:
        return _open_two_sources(recipe)
    if rule.kind == "folder" and (folders := _find_split_folders(data)):
        sources = dict(zip(("train_source", "test_source"), folders, strict=True))
        log(f"training tiles: {folders[0]}; test tiles: {folders[1]}")
        evaluation = recipe.evaluation.model_copy(update=sources)
        return _open_two_sources(recipe.model_copy(update={"evaluation": evaluation}))
    tiles = open_labelled_source(data, recipe, "--data")
    column = recipe.evaluation.label_column
    labels, names = tiles.labels(column)
    if unlabelled := sum(label is None for label in labels):
        raise UserError(
            f"--label-column={column!r} is empty or negative for {unlabelled:,} of {len(labels):,} tiles; "
            "leave those out"
        )
    pool = LabelledPool((tiles,), torch.tensor(labels), names)
    splits = _split(tiles, pool.labels, rule, test_share, seeds, log)
    for split in splits:
        check_split(split, pool.labels, names, f"--split={rule.text!r}")
    return pool, splits


def _open_two_sources(recipe: Recipe) -> tuple[LabelledPool, list[Split]]:
    pool = open_labelled_tiles(recipe)
    split = pool.split_by_source()
    check_split(split, pool.labels, pool.names, f"evaluation.label_column={recipe.evaluation.label_column!r}")
    return pool, [split]


def _split(tiles: Tiles, labels: Tensor, rule: SplitRule, test_share: float, seeds: int, log: Log) -> list[Split]:
    option = f"--split={rule.text!r}"
    if rule.kind == "random":
        return [split_at_random(labels, test_share, seed) for seed in range(seeds)]
    if rule.kind == "block":
        extents = _read_extents(tiles, option)
        return [split_by_blocks(extents, labels, test_share, seed, rule) for seed in range(seeds)]
    names = _names_in_column(tiles, rule.column, option) if rule.kind == "column" else _names_in_paths(tiles, option)
    split, note = split_by_names(names, option)
    if note:
        log(note)
    return [split]


def _find_split_folders(data: str) -> tuple[str, str] | None:
    """Return the training and test folders directly inside `data`, or None unless there are both."""
    folder = Path(data)
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else {}
    train = next((inside[name] for name in SET_NAMES["train"] if name in inside), None)
    test = next((inside[name] for name in SET_NAMES["test"] + SET_NAMES["val"] if name in inside), None)
    return (str(train), str(test)) if train and test else None


def _names_in_column(tiles: Tiles, column: str, option: str) -> list[str | None]:
    """Read the name of each tile's set from a column of text or of classes."""
    if column not in tiles.column_names:
        raise UserError(f"{option}: {tiles.source!r} has no column {column!r}; its columns: {_column_list(tiles)}")
    values = tiles.column(column)
    if any(isinstance(value, str) for value in values):
        return [None if value is None else str(value) for value in values]
    if not all(value is None or (isinstance(value, int) and not isinstance(value, bool)) for value in values):
        raise UserError(f"{option}: column {column!r} has no text; a column of the words train and test works")
    names = tiles.label_names(column)
    return [None if value is None or value < 0 else names[value] for value in values]


def _names_in_paths(tiles: Tiles, option: str) -> list[str | None]:
    """Return, for each tile's path, its first folder that names a set, else its first folder."""
    column = next((name for name in _PATH_COLUMNS if name in tiles.column_names), None)
    if column is None:
        raise UserError(
            f"{option}: {tiles.source!r} has neither folders named train and test nor a column of paths "
            f"({', '.join(_PATH_COLUMNS)}); --split random works"
        )
    known = {name for names in SET_NAMES.values() for name in names}
    names: list[str | None] = []
    for path in tiles.column(column):
        folders = PurePosixPath(str(path)).parts[:-1]
        names.append(next((name for name in folders if name.lower() in known), folders[0] if folders else None))
    return names


def _read_extents(tiles: Tiles, option: str) -> Tensor:
    """Return west, south, east and north of each tile in degrees, float64 [tiles, 4].

    If only the centres of tiles are known, their extents are points.
    """
    names = set(tiles.column_names)
    if {"bounds", "crs"} <= names:
        return _extents_of_bounds(tiles.column("bounds"), tiles.column("crs"), option)
    if {"longitude", "latitude"} <= names:
        centres = [tiles.column("longitude"), tiles.column("latitude")]
        _require_coordinates([x if y is not None else None for x, y in zip(*centres, strict=True)], option)
        x, y = (torch.tensor(values, dtype=torch.float64) for values in centres)
        return torch.stack([x, y, x, y], dim=1)
    raise UserError(
        f"{option} needs columns bounds and crs, or longitude and latitude; {tiles.source!r} has {_column_list(tiles)}"
    )


def _extents_of_bounds(bounds: Sequence[Any], systems: Sequence[Any], option: str) -> Tensor:
    _require_coordinates([box if system else None for box, system in zip(bounds, systems, strict=True)], option)
    extents = torch.tensor(bounds, dtype=torch.float64)
    for system in sorted(set(systems) - set(_CRS_IN_DEGREES)):
        rows = torch.tensor([other == system for other in systems])
        extents[rows] = _to_degrees(extents[rows], system, option)
    return extents


def _to_degrees(extents: Tensor, system: str, option: str) -> Tensor:
    """Convert the four corners of each extent; return their least and largest longitudes and latitudes."""
    try:
        from rasterio.warp import transform
    except ImportError:
        raise UserError(
            f"{option}: bounds in {system[:60]} need rasterio to become degrees; pip install 'moco-accel[geo]' works"
        ) from None
    x, y = extents[:, [0, 0, 2, 2]].flatten().tolist(), extents[:, [1, 3, 1, 3]].flatten().tolist()
    longitude, latitude = (
        torch.tensor(values, dtype=torch.float64).view(-1, 4) for values in transform(system, "EPSG:4326", x, y)
    )
    return torch.stack([longitude.amin(1), latitude.amin(1), longitude.amax(1), latitude.amax(1)], dim=1)


def _require_coordinates(coordinates: Sequence[Any], option: str) -> None:
    if missing := sum(each is None for each in coordinates):
        raise UserError(
            f"{option}: {missing:,} of {len(coordinates):,} tiles have no coordinates; tiles cut from GeoTIFF work, or "
            "--split random"
        )


def _column_list(tiles: Tiles) -> str:
    return ", ".join(tiles.column_names)
