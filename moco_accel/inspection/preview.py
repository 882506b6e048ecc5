"""Each tile beside both views that a run makes of it in its first epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moco_accel.common.drawing import BLUE, INK, ORANGE, Shown, shown_together
from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Pixels
from moco_accel.images.decoding import DamagedTile
from moco_accel.inspection.inspection import inspect_tiles
from moco_accel.inspection.opening import is_read_in_place, open_unknown
from moco_accel.inspection.report import recipe_fields
from moco_accel.inspection.sheets import Cell, draw_views, name_picture
from moco_accel.inspection.spectral import false_colour
from moco_accel.inspection.view_text import lines_of
from moco_accel.recipe.bands import name_bands, picture_bands, select_bands
from moco_accel.recipe.load import load_recipe, recipe_from_dict
from moco_accel.recipe.overrides import set_fields
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.resolve import MEASURED, resolve
from moco_accel.tiles.statistics import sample_indices
from moco_accel.tiles.tiles import Tiles
from moco_accel.training.loader import TwoCrops, TwoViews, open_training_tiles
from moco_accel.views.augment import AugmentedView, Crop, stack_crops

_SAMPLE = 200  # tiles, to scale a source by that comes without a recipe
_TOLD = (
    "split",
    "image_column",
    "pair_column",
    "stored_bands",
    "bands",
    "nodata",
)  # by --set, and needed to open a source
_VIEW_COLOURS = (BLUE, ORANGE)


def preview_recipe(source: str, recipe: Path | None, overrides: Sequence[str]) -> Recipe:
    """The recipe that `source` is or that goes with it; without one, views of 224 pixels scaled as inspect advises.

    Raises UserError.
    """
    if source.endswith((".yaml", ".yml")):
        if recipe is not None:
            raise UserError(f"SOURCE_OR_RECIPE={source!r} and --recipe={str(recipe)!r} are two recipes; one works")
        return load_recipe(source, list(overrides))
    if recipe is not None:
        return load_recipe(recipe, [f"data.source={source}", *overrides])
    fields: dict[str, Any] = {
        "encoder": {"name": "vit_small_patch16"},
        "batch": {"global_batch_size": 2, "micro_batch_size": 2, "accumulation_steps": 1},
        "optimizer": {"lr": scaled_lr(1.5e-4, 2)},
    }
    said = set_fields({"data": {}}, list(overrides))
    assert isinstance(said, dict)
    known = {name: said["data"][name] for name in _TOLD if name in said["data"]}
    for section, found in recipe_fields(inspect_tiles(open_unknown(source, **known), _SAMPLE)).items():
        fields[section] = fields.get(section, {}) | found
    if "scaling" in said["data"]:  # what goes with the one advised does not go with another
        fields["data"] = {name: value for name, value in fields["data"].items() if name not in MEASURED}
    fields["data"]["streaming"] = is_read_in_place(source)
    return recipe_from_dict(set_fields(fields, list(overrides)))


def write_preview(out: Path, recipe: Recipe, rows: int, bands: Sequence[str] | None = None) -> list[int]:
    """Draw `rows` tiles, spread evenly, and their views; returns the tiles' indices. Raises UserError."""
    tiles = open_training_tiles(recipe)
    recipe = resolve(recipe, tiles, say=lambda line: None)
    indices = readable(tiles, recipe, rows)
    sources = [_sources(tiles, recipe, index) for index in indices]
    both = [TwoViews(tiles, recipe)[(0, index)] for index in indices]
    crops = [_whole(two) for two in both]
    views = [stored_views([pair[view] for pair in crops], recipe) for view in (0, 1)]
    groups = [
        shown_together([source[0] for source in sources], triple) for triple in band_triples(tiles, recipe, bands)
    ]
    cells = [
        [
            _tile_cells(group, index, sources[row], both[row], crops[row])
            + _view_cells(group, recipe, sources[row], both[row], crops[row], [view[row] for view in views])
            for group in groups
        ]
        for row, index in enumerate(indices)
    ]
    draw_views(out, *_titles(recipe, len(tiles)), [_heads(group, recipe) for group in groups], cells)
    return indices


def readable(tiles: Tiles, recipe: Recipe, wanted: int) -> list[int]:
    """Indices of `wanted` tiles, spread evenly; in place of one that is damaged, the next good one.

    Raises UserError when there is none.
    """
    found: list[int] = []
    reason = ""
    for index in sample_indices(len(tiles), wanted):
        for place in ((index + step) % len(tiles) for step in range(len(tiles))):
            try:
                _sources(tiles, recipe, place)
            except DamagedTile as error:
                reason = f"tile {place} {error}"
                continue
            found.append(place)
            break
        if not found:
            raise UserError(f"data.source={recipe.data.source!r}: no tile can be read ({reason}); build them anew")
    return sorted(set(found))


def _sources(tiles: Tiles, recipe: Recipe, index: int) -> list[Pixels]:
    """The tile; and, of a pair, the other season's. Raises DamagedTile."""
    return [tiles[index].numpy(), *([tiles.pair(index).numpy()] if recipe.data.pair_column else [])]


def _whole(two: TwoCrops) -> tuple[Crop, Crop]:
    assert two.crops is not None, "this tile was read before"
    return two.crops


def stored_views(crops: Sequence[Crop], recipe: Recipe) -> Pixels:
    """One view as the encoder gets it, turned back into stored units: float [tiles, bands, size, size]."""
    pixels = AugmentedView([stack_crops(crops)], recipe, torch.device("cpu"))[0].float().numpy()
    (mean, std), (low, high) = recipe.normalisation, recipe.stored_range
    mean_, std_, low_, high_ = (np.array(values)[:, None, None] for values in (mean, std, low, high))
    stored: Pixels = low_ + (pixels * std_ + mean_) * (high_ - low_)
    return stored


def band_triples(tiles: Tiles, recipe: Recipe, wanted: Sequence[str] | None) -> list[tuple[int, int, int]]:
    """Which bands to show: true colour, or the first three; then `wanted`, or near infrared, red and green.

    Raises UserError when `wanted` are not three bands of these tiles.
    """
    names = tiles.bands
    triples = [picture_bands(names, recipe.encoder.bands, tiles.sensor)]
    if wanted is not None and (names is None or len(wanted) != 3):
        why = "the bands of these tiles have no names" if names is None else f"these are {len(wanted)}"
        works = ",".join((names or ["B4", "B3", "B2"])[:3])
        raise UserError(f"--bands={','.join(wanted)}: {why}; three bands that have names work, e.g. --bands {works}")
    if names is not None and (chosen := wanted or false_colour(names, tiles.sensor)):
        red, green, blue = select_bands(chosen, names, "--bands", tiles.source)
        triples.append((red, green, blue))
    return list(dict.fromkeys(triples))


def _source_of(view: int, two: TwoCrops, sources: Sequence[Pixels]) -> int:
    """Which of a place's tiles the view was cut out of."""
    return (view ^ two.swapped) % len(sources)


def _tile_cells(
    group: Shown, index: int, sources: Sequence[Pixels], two: TwoCrops, crops: Sequence[Crop]
) -> list[Cell]:
    cells = []
    for number, source in enumerate(sources):
        boxes = [
            ((crop.geometry.top, crop.geometry.left, crop.geometry.height, crop.geometry.width), _VIEW_COLOURS[view])
            for view, crop in enumerate(crops)
            if _source_of(view, two, sources) == number
        ]
        size = f"{source.shape[1]} x {source.shape[2]} pixels"
        cells.append(Cell(group.colours(source), [f"{index}", size], boxes=boxes))
    return cells


def _view_cells(
    group: Shown,
    recipe: Recipe,
    sources: Sequence[Pixels],
    two: TwoCrops,
    crops: Sequence[Crop],
    views: Sequence[Pixels],
) -> list[Cell]:
    names = name_bands(recipe.data.bands, recipe.encoder.bands)
    cells = []
    for view, crop in enumerate(crops):
        _, height, width = sources[_source_of(view, two, sources)].shape
        lines = lines_of(crop.geometry, crop.photometry, height, width, names)
        cells.append(Cell(group.colours(views[view]), lines, _VIEW_COLOURS[view]))
    return cells


def _heads(group: Shown, recipe: Recipe) -> list[tuple[str, str]]:
    bands = name_picture(group.bands, name_bands(recipe.data.bands, recipe.encoder.bands))
    other = [("other season", INK)] if recipe.data.pair_column else []
    return [(f"tile: {bands}", INK), *other, ("view 1", BLUE), ("view 2", ORANGE)]


def _titles(recipe: Recipe, count: int) -> tuple[str, str]:
    size, augment = recipe.encoder.image_size, recipe.augment
    noise = f", noise {augment.noise_std:g}" if augment.noise_std else ""
    shown = "" if recipe.data.scaling == "uint8" else ", shown from each band's 2nd percentile to its 98th"
    return f"Tiles of {recipe.data.source}, and both views of each in the first epoch", (
        f"of {count:,} tiles; views of {size} x {size} pixels, augment.preset={augment.preset}{noise}, "
        f"data.scaling={recipe.data.scaling}{shown}"
    )
