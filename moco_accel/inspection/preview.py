"""Draw each tile beside both of its views in a run's first epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moco_accel.common.drawing import BLUE, INK, ORANGE, RgbStretch, common_stretch
from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Pixels
from moco_accel.images.headers import DamagedTile
from moco_accel.inspection.inspect_tiles import inspect_tiles
from moco_accel.inspection.open_without_recipe import is_read_in_place, open_without_recipe
from moco_accel.inspection.picture_grid import Box, Cell, channel_names, draw_views
from moco_accel.inspection.report import recipe_fields
from moco_accel.inspection.spectral_bands import false_colour
from moco_accel.recipe.bands import band_labels, picture_bands, select_bands
from moco_accel.recipe.load import load_recipe, recipe_from_dict
from moco_accel.recipe.overrides import apply_overrides
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.fill_data_fields import MEASURED_FIELDS, fill_data_fields
from moco_accel.tiles.statistics import sample_indices
from moco_accel.tiles.tiles import Tiles
from moco_accel.training.loader import CropPair, TwoViewDataset, open_training_tiles
from moco_accel.views.augment import AugmentedView
from moco_accel.views.crops import Crop, stack_crops
from moco_accel.views.parameters import Geometry, Photometry

_SAMPLE = 200  # tiles read to scale a source without a recipe
# fields of --set that are needed to open a source
_SOURCE_FIELDS = ("split", "image_column", "pair_column", "stored_bands", "bands", "nodata")


def preview_recipe(source: str, recipe: Path | None, overrides: Sequence[str]) -> Recipe:
    """Load the recipe to preview.

    Args:
        source: A recipe (.yaml), or a source of tiles.
        recipe: The recipe of the views for a source; None for views of 224 pixels, scaled as `inspect` advises.
        overrides: `section.field=value` texts of --set.

    Raises:
        UserError: If a recipe or a field is invalid, or the source cannot be opened.
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
    given = apply_overrides({"data": {}}, list(overrides))
    assert isinstance(given, dict)
    known = {name: given["data"][name] for name in _SOURCE_FIELDS if name in given["data"]}
    for section, found in recipe_fields(inspect_tiles(open_without_recipe(source, **known), _SAMPLE)).items():
        fields[section] = fields.get(section, {}) | found
    if "scaling" in given["data"]:  # statistics for the advised scaling do not fit another
        fields["data"] = {name: value for name, value in fields["data"].items() if name not in MEASURED_FIELDS}
    fields["data"]["streaming"] = is_read_in_place(source)
    return recipe_from_dict(apply_overrides(fields, list(overrides)))


def write_preview(out: Path, recipe: Recipe, rows: int, bands: Sequence[str] | None = None) -> list[int]:
    """Draw evenly spaced tiles and their views.

    Args:
        bands: Three bands to draw beside true colour; None for near infrared, red and green.

    Returns:
        The indices of the tiles.

    Raises:
        UserError: If no tile can be read, or `bands` are not three bands of the tiles.
    """
    tiles = open_training_tiles(recipe)
    recipe = fill_data_fields(recipe, tiles, log=lambda line: None)
    indices = find_readable(tiles, recipe, rows)
    sources = [_sources(tiles, recipe, index) for index in indices]
    pairs = [TwoViewDataset(tiles, recipe)[(0, index)] for index in indices]
    views = [stored_views([_crops_of(pair)[view] for pair in pairs], recipe) for view in (0, 1)]
    triples = band_triples(tiles, recipe, bands)
    groups = [common_stretch([source[0] for source in sources], triple) for triple in triples]
    names = band_labels(recipe.data.bands, recipe.encoder.bands)
    cells = [
        [_row_cells(group, names, index, sources[row], pairs[row], [view[row] for view in views]) for group in groups]
        for row, index in enumerate(indices)
    ]
    heads = [_heads(channel_names(group.bands, names), recipe) for group in groups]
    draw_views(out, *_titles(recipe, len(tiles)), heads, cells)
    return indices


def find_readable(tiles: Tiles, recipe: Recipe, wanted: int) -> list[int]:
    """Return indices of evenly spaced tiles; the next readable tile replaces a damaged one.

    Raises:
        UserError: If no tile can be read.
    """
    found: list[int] = []
    reason = ""
    for index in sample_indices(len(tiles), wanted):
        for candidate in ((index + step) % len(tiles) for step in range(len(tiles))):
            try:
                _sources(tiles, recipe, candidate)
            except DamagedTile as error:
                reason = f"tile {candidate} {error}"
                continue
            found.append(candidate)
            break
        if not found:
            raise UserError(
                f"data.source={recipe.data.source!r}: no tile can be read ({reason}); build the tiles again"
            )
    return sorted(set(found))


def _sources(tiles: Tiles, recipe: Recipe, index: int) -> list[Pixels]:
    """Return the tile and, for paired seasons, its pair. Raises DamagedTile."""
    return [tiles[index].numpy(), *([tiles.pair(index).numpy()] if recipe.data.pair_column else [])]


def _crops_of(pair: CropPair) -> tuple[Crop, Crop]:
    assert pair.crops is not None, "the dataset returned no crops"
    return pair.crops


def stored_views(crops: Sequence[Crop], recipe: Recipe) -> Pixels:
    """Return one view as the encoder gets it, in stored units: float [tiles, bands, size, size]."""
    pixels = AugmentedView([stack_crops(crops)], recipe, torch.device("cpu"))[0].float().numpy()
    (mean, std), (low, high) = recipe.normalisation, recipe.stored_range
    mean_, std_, low_, high_ = (np.array(values)[:, None, None] for values in (mean, std, low, high))
    stored: Pixels = low_ + (pixels * std_ + mean_) * (high_ - low_)
    return stored


def band_triples(tiles: Tiles, recipe: Recipe, wanted: Sequence[str] | None) -> list[tuple[int, int, int]]:
    """Return the bands to draw: true colour or the first three; then `wanted`, or near infrared, red and green.

    Raises:
        UserError: If `wanted` are not three bands of the tiles.
    """
    names = tiles.bands
    triples = [picture_bands(names, recipe.encoder.bands, tiles.sensor)]
    if wanted is not None and (names is None or len(wanted) != 3):
        why = "the bands of these tiles have no names" if names is None else f"{len(wanted)} bands are given"
        works = ",".join((names or ["B4", "B3", "B2"])[:3])
        raise UserError(f"--bands={','.join(wanted)}: {why}; three named bands work, e.g. --bands {works}")
    if names is not None and (chosen := wanted or false_colour(names, tiles.sensor)):
        red, green, blue = select_bands(chosen, names, "--bands", tiles.source)
        triples.append((red, green, blue))
    return list(dict.fromkeys(triples))


def _row_cells(
    group: RgbStretch, names: Sequence[str], index: int, sources: list[Pixels], pair: CropPair, views: list[Pixels]
) -> list[Cell]:
    """Return the cells of the tile and, for paired seasons, its pair; then those of both views."""
    boxes: list[list[tuple[Box, str]]] = [[] for _ in sources]
    view_cells = []
    for view, (crop, colour) in enumerate(zip(_crops_of(pair), (BLUE, ORANGE), strict=True)):
        number = (view ^ pair.swapped) % len(sources)  # of the season that the view was cropped from
        box = crop.geometry
        boxes[number].append(((box.top, box.left, box.height, box.width), colour))
        _, height, width = sources[number].shape
        caption = caption_lines(box, crop.photometry, height, width, names)
        view_cells.append(Cell(group.to_rgb(views[view]), caption, colour))
    tile_cells = [
        Cell(group.to_rgb(source), [str(index), f"{source.shape[1]} x {source.shape[2]} pixels"], boxes=outlines)
        for source, outlines in zip(sources, boxes, strict=True)
    ]
    return tile_cells + view_cells


def caption_lines(
    geometry: Geometry, photometry: Photometry, height: int, width: int, bands: Sequence[str]
) -> list[str]:
    """Return lines on crop and orientation; colours or bands; blur, solarization and dropped bands."""
    area = geometry.height * geometry.width / (height * width)
    crop = [f"{area:.0%} of area"]
    if geometry.quarter_turns:
        crop.append(f"{90 * geometry.quarter_turns}°")
    if geometry.horizontal_flip or geometry.vertical_flip:
        flips = {(True, False): "left-right", (False, True): "up-down", (True, True): "both ways"}
        crop.append("flipped " + flips[geometry.horizontal_flip, geometry.vertical_flip])
    colours = _describe_bands(photometry) if photometry.band_gain else _describe_colours(photometry)
    return [", ".join(crop), colours, _describe_other_changes(photometry, bands)]


def _describe_colours(photometry: Photometry) -> str:
    factors = {"bright": photometry.brightness, "contrast": photometry.contrast, "colour": photometry.saturation or 1.0}
    changes = [f"{name} {factor:.2f}" for name, factor in factors.items() if factor != 1]
    if photometry.hue:
        changes.append(f"hue {photometry.hue:+.2f}")
    if photometry.saturation == 0:
        changes.append("grey")
    return ", ".join(changes) or "colours kept"


def _describe_bands(photometry: Photometry) -> str:
    gain, offset = photometry.band_gain, max(map(abs, photometry.band_offset))
    changes = [f"gain {min(gain):.2f} to {max(gain):.2f}"] if (min(gain), max(gain)) != (1, 1) else []
    if offset:
        changes.append(f"offset within ±{offset:.3f}")
    return ", ".join(changes) or "bands kept"


def _describe_other_changes(photometry: Photometry, bands: Sequence[str]) -> str:
    changes = [f"blur {photometry.blur_sigma:.1f} pixels"] if photometry.blur_sigma else []
    if photometry.solarize:
        changes.append("solarized")
    if dropped := [name for name, kept in zip(bands, photometry.band_keep, strict=False) if not kept]:
        changes.append(f"without {', '.join(dropped)}")
    return ", ".join(changes) or "sharp"


def _heads(bands: str, recipe: Recipe) -> list[tuple[str, str]]:
    other = [("other season", INK)] if recipe.data.pair_column else []
    return [(f"tile: {bands}", INK), *other, ("view 1", BLUE), ("view 2", ORANGE)]


def _titles(recipe: Recipe, count: int) -> tuple[str, str]:
    size, augment = recipe.encoder.image_size, recipe.augment
    noise = f", noise {augment.noise_std:g}" if augment.noise_std else ""
    shown = "" if recipe.data.scaling == "uint8" else ", drawn from each band's 2nd percentile to its 98th"
    return f"Tiles of {recipe.data.source}, and both views of each in the first epoch", (
        f"of {count:,} tiles; views of {size} x {size} pixels, augment.preset={augment.preset}{noise}, "
        f"data.scaling={recipe.data.scaling}{shown}"
    )
