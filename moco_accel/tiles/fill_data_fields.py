"""Fill the null fields of a recipe's data section from the tiles: bands, stored range, mean and standard deviation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.markup import escape

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import band_labels
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.rules import MIN_RELATIVE_RANGE
from moco_accel.recipe.schema import IMAGENET_MEAN, IMAGENET_STD, Recipe
from moco_accel.sources.tile_metadata import BandStatistics
from moco_accel.tiles.statistics import (
    SAMPLE,
    MeasuredStatistics,
    clipped_share,
    describe_unmarked,
    measure_statistics,
    scaled_mean_std,
)
from moco_accel.tiles.stored_values import LARGEST_FLOAT
from moco_accel.tiles.tiles import Tiles

MEASURED_FIELDS = ("low", "high", "mean", "std")
_FIELDS = ("image_column", "bands", "nodata", *MEASURED_FIELDS)
_ALL_CLIPPED = 0.99
_CHECKED_TILES = 100  # if mean and std need no measurement
_MAX_CLIPPED = 0.1  # of a band's values; percentiles clip 0.02
_MAX_NOISE = 0.25  # of a band's standard deviation; 8-bit RGB has 0.04

Log = Callable[[str], None]


def inherit_data_fields(recipe: Recipe, before: Recipe) -> Recipe:
    """Fill the null data fields of a resumed run with those of the run `before`."""
    kept = {name: getattr(before.data, name) for name in _FIELDS if getattr(recipe.data, name) is None}
    return _with_data(recipe, kept)


def fill_data_fields(recipe: Recipe, tiles: Tiles, log: Log) -> Recipe:
    """Fill the null data fields from the tiles. The result is the same on every process.

    `log` receives a line of Rich markup about each measured field, and warnings.

    Raises:
        UserError: If `data.low` and `data.high` clip all values of a band, or if the filled recipe breaks a rule.
    """
    data, is_uint8 = recipe.data, recipe.data.scaling == "uint8"
    found: dict[str, Any] = {"image_column": tiles.image_column, "bands": tiles.bands}
    if tiles.paired_column is not None and data.pair_column is None:
        pairs = escape(f"data.pair_column={tiles.paired_column} augment.preset=seasons")
        log(f"the tiles have paired seasons, but both views are of one tile: data.pair_column=null; {pairs} uses them")
    if not is_uint8:  # 8-bit values are pixels as they are
        found["nodata"] = tiles.nodata
        if tiles.nodata is not None and data.nodata is None:
            log(f"data.nodata: pixels of {tiles.nodata:g} hold no data, according to the tiles")
    measured: MeasuredStatistics | None = None
    if data.low is None and data.scaling == "percentiles":
        low, high, measured = _measure_range(tiles, log)
    else:
        low, high = recipe.stored_range
    found |= {"low": low, "high": high}
    lacks_mean_or_std = data.mean is None or data.std is None
    has_imagenet_statistics = is_uint8 and recipe.encoder.bands == len(IMAGENET_MEAN)
    is_measured = lacks_mean_or_std and not has_imagenet_statistics
    if is_measured or not (is_uint8 and tiles.is_remote):  # a look at pixels of 0 would fetch whole shards
        measured = measured or measure_statistics(tiles, SAMPLE if is_measured else _CHECKED_TILES)
        source = f"data.source={tiles.source!r}"
        for line in (*describe_unmarked(measured, source, data.scaling), *measured.units.describe(source)):
            log(f"[yellow]{escape(line)}[/]")
    if measured and not is_uint8:
        _check_range(recipe, tiles, measured, low, high, log)
    if lacks_mean_or_std and has_imagenet_statistics:
        found |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
        log("data.mean, data.std: ImageNet's, as for any 8-bit tiles of three bands")
    elif measured and lacks_mean_or_std:
        found |= mean_and_std(measured, low, high)
        log(f"data.mean, data.std: of {measured.tiles} tiles: {_format(found['mean'])}, {_format(found['std'])}")
    filled = _with_data(recipe, {name: v for name, v in found.items() if getattr(data, name) is None})
    _warn_of_noise(filled, log)
    return filled


def _measure_range(tiles: Tiles, log: Log) -> tuple[list[float], list[float], MeasuredStatistics | None]:
    """Return low and high of each band, and the measurement if the tiles store no statistics."""
    statistics, measured, counted = tiles.statistics, None, "all tiles"
    if statistics is None:
        measured = measure_statistics(tiles)
        statistics, counted = measured.running.statistics(), f"{measured.tiles} tiles"
    low, high = percentile_range(statistics)
    log(f"data.low, data.high: 1st and 99th percentile of {counted}: {_format(low)} to {_format(high)}")
    return low, high, measured


def _check_range(
    recipe: Recipe, tiles: Tiles, measured: MeasuredStatistics, low: Sequence[float], high: Sequence[float], log: Log
) -> None:
    """Warn if the range clips many values of a band; refuse a range that clips all."""
    scaling = f"data.scaling={recipe.data.scaling}"
    shares = list(zip(band_labels(tiles.bands, len(low)), clipped_share(measured.running, low, high), strict=True))
    if all_clipped := [f"{name} {share:.1%}" for name, share in shares if share > _ALL_CLIPPED]:
        given = [f"data.{name}=null" for name in MEASURED_FIELDS if getattr(recipe.data, name) is not None]
        works = " ".join(["data.scaling=percentiles", *given])
        raise UserError(
            f"{scaling} maps values from {_format(low)} to {_format(high)} to pixels, but in {tiles.source!r} "
            f"{', '.join(all_clipped)} of all values lie outside; {works} works"
        )
    if clipped := escape(", ".join(f"{name} {share:.0%}" for name, share in shares if share > _MAX_CLIPPED)):
        log(f"[yellow]{scaling} clips values of {clipped}; data.scaling=percentiles clips 2% of each[/]")


def percentile_range(statistics: BandStatistics) -> tuple[list[float], list[float]]:
    """Return each band's 1st and 99th percentile; for a constant band, its value and that plus 1 or what resolves."""
    pairs = [_resolved(*pair) for pair in zip(statistics.percentiles["1"], statistics.percentiles["99"], strict=True)]
    return [low for low, _ in pairs], [high for _, high in pairs]


def _resolved(low: float, high: float) -> tuple[float, float]:
    """Return a range that is wide enough for float32."""
    least = 4 * MIN_RELATIVE_RANGE * max(abs(low), abs(high))
    if high - low > least or (least == 0 and high > low):
        return low, high
    high = low + max(1.0, least)
    return (low, high) if high <= LARGEST_FLOAT else (low - least, low)


def mean_and_std(measured: MeasuredStatistics, low: Sequence[float], high: Sequence[float]) -> dict[str, list[float]]:
    """Return `mean` and `std` of pixels, rounded to four digits; the std of a constant band is 1, as it divides."""
    mean, std = scaled_mean_std(measured.running, low, high)
    return {"mean": [_round(value) for value in mean], "std": [_round(value) or 1.0 for value in std]}


def _warn_of_noise(recipe: Recipe, log: Log) -> None:
    """Warn if the noise, which is a share of the pixel range, is large for the values of a band."""
    noise, (_, stds) = recipe.augment.noise_std, recipe.normalisation
    names = band_labels(recipe.data.bands, len(stds))
    if noisy := [name for name, std in zip(names, stds, strict=True) if noise > _MAX_NOISE * std]:
        log(
            f"[yellow]augment.noise_std={noise:g} is more than {_MAX_NOISE:.0%} of the standard deviation of "
            f"{escape(', '.join(noisy))}; data.scaling=percentiles spreads every band, or augment.noise_std="
            f"{_round(min(stds) * _MAX_NOISE / 2):.1g} is less[/]"
        )


def _with_data(recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    """Change fields of the data section; the result is validated, so that what a run writes can be loaded."""
    sections = recipe.model_dump(exclude={"planned"} if recipe.planned is None else None)
    return recipe_from_dict(sections | {"data": sections["data"] | fields})


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _format(numbers: Sequence[float]) -> str:
    return "[" + ", ".join(f"{number:.4g}" for number in numbers) + "]"
