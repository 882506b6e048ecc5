"""What a recipe leaves to the tiles: bands by name, stored range, mean and standard deviation. Said, and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.markup import escape

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import name_bands
from moco_accel.recipe.constants import IMAGENET_MEAN, IMAGENET_STD
from moco_accel.recipe.rules import check_rules
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.tile_facts import BandStatistics
from moco_accel.tiles.statistics import SAMPLE, Measured, measure_statistics, scaled_mean_std, share_cut_off
from moco_accel.tiles.tiles import Tiles

MEASURED = ("low", "high", "mean", "std")
_FIELDS = ("image_column", "bands", "nodata", *MEASURED)
_NOTHING_LEFT = 0.99
_CHECKED = 100  # tiles, where nothing else is measured
_MOST_CUT_OFF = 0.1  # of a band's values; percentiles cut off 0.02
_MOST_NOISE = 0.25  # of a band's standard deviation; 8-bit RGB has 0.04


def inherit(recipe: Recipe, before: Recipe) -> Recipe:
    """A resumed run keeps what the run before took from its tiles: null fields are `before`'s."""
    kept = {name: getattr(before.data, name) for name in _FIELDS if getattr(recipe.data, name) is None}
    return _with_data(recipe, kept)


def resolve(recipe: Recipe, tiles: Tiles, say: Callable[[str], None]) -> Recipe:
    """`recipe` with nothing in its data section left to the tiles; `say` hears where the numbers come from.

    The same on every process: it depends on recipe and tiles alone. Raises UserError as any recipe does.
    """
    found: dict[str, Any] = {"image_column": tiles.image_column}
    if tiles.bands is not None:
        found["bands"] = tiles.bands
    if tiles.partner_column is not None and recipe.data.pair_column is None:
        pairs = escape(f"data.pair_column={tiles.partner_column} augment.preset=seasons")
        say(f"the tiles come in pairs, and both views are of one tile: data.pair_column=null; {pairs} trains on pairs")
    if recipe.data.scaling != "uint8":  # 8 bits stay as they are
        found["nodata"] = tiles.nodata
        if tiles.nodata is not None and recipe.data.nodata is None:
            say(f"data.nodata: pixels of {tiles.nodata:g} hold no data, the tiles say")
    measured: Measured | None = None
    low, high = recipe.data.low, recipe.data.high
    if low is None and recipe.data.scaling == "percentiles":
        if tiles.statistics is None:
            measured = measure_statistics(tiles)
        statistics = tiles.statistics if measured is None else measured.statistics
        assert statistics is not None
        low, high = percentile_range(statistics)
        whence = "all tiles" if measured is None else f"{measured.tiles} tiles"
        say(f"data.low, data.high: 1st and 99th percentile of {whence}: {_short(low)} to {_short(high)}")
    if low is None or high is None:
        low, high = recipe.stored_range
    found |= {"low": low, "high": high}
    if recipe.data.scaling != "uint8":
        measured = measured or measure_statistics(tiles, SAMPLE if _lacks_mean_or_std(recipe) else _CHECKED)
        _check_range(recipe, tiles, measured, low, high, say)
    if _lacks_mean_or_std(recipe):
        found |= _mean_and_std(recipe, tiles, measured, low, high, say)
    resolved = _with_data(recipe, {name: v for name, v in found.items() if getattr(recipe.data, name) is None})
    _warn_of_noise(resolved, say)
    return resolved


def _lacks_mean_or_std(recipe: Recipe) -> bool:
    return recipe.data.mean is None or recipe.data.std is None


def _mean_and_std(
    recipe: Recipe,
    tiles: Tiles,
    measured: Measured | None,
    low: Sequence[float],
    high: Sequence[float],
    say: Callable[[str], None],
) -> dict[str, list[float]]:
    if recipe.encoder.bands == len(IMAGENET_MEAN) and recipe.data.scaling == "uint8":
        return {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    measured = measured or measure_statistics(tiles)
    found = mean_and_std(measured, low, high)
    say(f"data.mean, data.std: of {measured.tiles} tiles: {_short(found['mean'])}, {_short(found['std'])}")
    return found


def _check_range(
    recipe: Recipe,
    tiles: Tiles,
    measured: Measured,
    low: Sequence[float],
    high: Sequence[float],
    say: Callable[[str], None],
) -> None:
    """Warn of what the range cuts off. Raises UserError where it leaves a band nothing."""
    shares = share_cut_off(measured.counter, low, high)
    scaling = f"data.scaling={recipe.data.scaling}"
    names = name_bands(tiles.bands, len(shares))
    bare = [f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True) if share > _NOTHING_LEFT]
    if bare:
        given = [f"data.{name}=null" for name in MEASURED if getattr(recipe.data, name) is not None]
        raise UserError(
            f"{scaling} takes values from {_short(low)} to {_short(high)} for pixels, and in {tiles.source!r} "
            f"{', '.join(bare)} of all values lie outside; data.scaling=percentiles {' '.join(given)} works".replace(
                "  ", " "
            )
        )
    cut = [f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True) if share > _MOST_CUT_OFF]
    if cut:
        say(
            f"[yellow]{scaling} cuts off values of {escape(', '.join(cut))}; "
            "data.scaling=percentiles cuts off 2% of each[/]"
        )


def percentile_range(statistics: BandStatistics) -> tuple[list[float], list[float]]:
    """Each band's 1st and 99th percentile; of a band that is the same everywhere, its value and one above."""
    low, high = statistics.percentiles["1"], statistics.percentiles["99"]
    return low, [above if above > below else below + 1 for below, above in zip(low, high, strict=True)]


def mean_and_std(measured: Measured, low: Sequence[float], high: Sequence[float]) -> dict[str, list[float]]:
    """`mean` and `std` of pixels, with four digits; what is the same everywhere cannot be divided by how it varies."""
    mean, std = scaled_mean_std(measured.counter, low, high)
    return {"mean": [_rounded(value) for value in mean], "std": [_rounded(value) or 1.0 for value in std]}


def _warn_of_noise(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Noise is stated in the pixel range, of which a band may take up little."""
    noise, (_, stds) = recipe.augment.noise_std, recipe.normalisation
    names = name_bands(recipe.data.bands, len(stds))
    drowned = [name for name, std in zip(names, stds, strict=True) if noise > _MOST_NOISE * std]
    if drowned:
        say(
            f"[yellow]augment.noise_std={noise:g} is more than {_MOST_NOISE:.0%} of the standard deviation of "
            f"{escape(', '.join(drowned))}; data.scaling=percentiles spreads every band, or augment.noise_std="
            f"{_rounded(min(stds) * _MOST_NOISE / 2):.1g} is less[/]"
        )


def _with_data(recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    changed = recipe.model_copy(update={"data": recipe.data.model_copy(update=fields)})
    check_rules(changed)
    return changed


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _short(numbers: Sequence[float]) -> str:
    return "[" + ", ".join(f"{number:.4g}" for number in numbers) + "]"
