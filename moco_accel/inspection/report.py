"""Print an inspection as tables, warnings and recipe fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Column, Table

from moco_accel.common.pixels import Pixels
from moco_accel.inspection.inspect_tiles import Inspection, bytes_on_disk
from moco_accel.inspection.processing_baselines import describe_baselines
from moco_accel.inspection.spectral_bands import spectral_band
from moco_accel.recipe.data_sections import STORED_RANGES
from moco_accel.recipe.text import dump_yaml
from moco_accel.tiles.band_selection import example_band_names, needs_band_names
from moco_accel.tiles.fill_data_fields import mean_and_std, percentile_range
from moco_accel.tiles.statistics import describe_unmarked

_MAX_LISTED = 10
_BARS = "▁▂▃▄▅▆▇█"


def recipe_fields(found: Inspection) -> dict[str, Any]:
    """Return the recipe sections `encoder` and `data` (and `augment` for paired seasons) that fit the tiles.

    8-bit tiles are scaled as uint8, others from each band's 1st to its 99th percentile. As reflectance, dark bands
    would take up a few per cent of the range, less than the augmentation's noise. `mean` and `std` are scaled.
    """
    count = len(found.statistics.mean)
    # of 8 bits, numbers mark no data only with another scaling than uint8
    is_marked = found.tiles.metadata is None and found.tiles.nodata is not None
    scaling = "uint8" if found.dtype == "uint8" and not is_marked else "percentiles"
    if scaling == "percentiles":
        low, high = percentile_range(found.statistics)
    else:
        low, high = ([edge] * count for edge in STORED_RANGES[scaling])
    tiles = found.tiles
    data: dict[str, Any] = {"source": tiles.source, "image_column": tiles.image_column}
    data |= {"pair_column": tiles.paired_column, "nodata": tiles.nodata if scaling != "uint8" else None}
    data |= {"stored_bands": tiles.declared_bands, "bands": tiles.bands, "scaling": scaling}
    if scaling == "percentiles":
        data |= {"low": low, "high": high}
    data |= mean_and_std(found.measured, low, high)
    pairs = {"augment": {"preset": "seasons"}} if tiles.paired_column else {}
    return {
        "encoder": {"bands": count},
        "data": {name: value for name, value in data.items() if value is not None},
    } | pairs


def print_inspection(found: Inspection, console: Console) -> None:
    """Print tables, warnings, and recipe fields; a mix of baselines has no fields that fit."""
    for part in (_overview(found), _band_table(found), *_class_table(found), *_damaged_table(found)):
        console.print(part)
        console.print()
    for warning in list_warnings(found):
        console.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True)
    if found.baselines:
        if found.baselines.verdict == "mix":
            return
        console.print(f"Sentinel-2. {describe_baselines(found.baselines)}", soft_wrap=True)
    count, comment = len(found.statistics.mean), ""
    if needs_band_names(found.tiles.bands, count):
        names = example_band_names(count)
        comment = f"to add to data: stored_bands, the names of all {count} bands in their order, e.g. {names}"
    console.print("For a recipe:")
    console.print(dump_yaml(recipe_fields(found), comment).rstrip(), soft_wrap=True, markup=False)


def list_warnings(found: Inspection) -> list[str]:
    """Return warnings to act on before training, most important first."""
    warnings = []
    if found.baselines and found.baselines.verdict == "mix":
        warnings.append(describe_baselines(found.baselines))
    if damaged := len(found.measured.damaged):
        share = damaged / found.measured.num_sampled
        warnings.append(f"{damaged:,} of {found.measured.num_sampled:,} tiles read are damaged ({share:.2%})")
    values = zip(found.band_names, found.statistics.minimum, found.statistics.maximum, strict=True)
    if constant := ", ".join(name for name, low, high in values if low == high):
        warnings.append(f"constant bands: {constant}; data.bands can leave them out because they carry no information")
    warnings += describe_unmarked(found.measured, found.tiles.source, None)
    warnings += found.measured.units.describe(found.tiles.source)
    if found.tiles.bands is None:
        warnings.append(
            f"the {len(found.statistics.mean)} bands have no stored names; name all in their order with --band-names "
            f"here, and with data.stored_bands in a recipe"
        )
    if found.no_labels is not None:
        warnings.append(f"no classes: {found.no_labels}")
    if len(found.sizes) > 1:
        (height, width), tiles = found.sizes[0]
        warnings.append(f"{len(found.sizes):,} tile sizes; the most frequent, {height} x {width}, has {tiles:,} tiles")
    return warnings


def _overview(found: Inspection) -> Table:
    table = Table(title=escape(found.tiles.source), show_header=False, title_justify="left", box=None)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _overview_rows(found):
        table.add_row(name, escape(value))
    return table


def _overview_rows(found: Inspection) -> Iterator[tuple[str, str]]:
    tiles, measured = found.tiles, found.measured
    num_bytes, shards = bytes_on_disk(tiles), len(tiles.shard_sizes)
    size = f", {_format_bytes(num_bytes)}" if num_bytes is not None else ""
    yield "tiles", f"{len(tiles):,} in {shards:,} shard{'s' * (shards != 1)}{size}"
    sample = "all" if measured.num_sampled == len(tiles) else f"{measured.num_sampled:,}, evenly spaced"
    yield "read", f"{sample}; {len(measured.damaged):,} damaged"
    yield "size", _describe_sizes(found)
    sensor = f" of {found.sensor}" if found.sensor else ""
    yield "bands", f"{len(found.statistics.mean)} x {found.dtype}{sensor}" + ("" if tiles.bands else ", unnamed")
    nodata = f"pixels of {tiles.nodata:g}" if tiles.nodata is not None else "no value declared"
    yield "nodata", f"{found.statistics.nodata_share:.2%} ({nodata})"
    yield "columns", ", ".join(f"{name} (tiles)" if name == tiles.image_column else name for name in tiles.column_names)
    for extent in found.extents:
        edges = f"{_edge(extent.left)} to {_edge(extent.right)} E, {_edge(extent.bottom)} to {_edge(extent.top)} N"
        yield "extent", f"{_crs_name(extent.crs)}: {edges}, {extent.tiles:,} tiles"


def _edge(value: float) -> str:
    """Format metres without decimals, degrees with four."""
    return f"{value:,.0f}" if abs(value) > 360 else f"{value:.4f}"


def _crs_name(crs: str) -> str:
    """Return EPSG:32618 unchanged, and the name at the start of WKT."""
    named = re.match(r'\w+\["([^"]+)"', crs)
    return named[1] if named else crs


def _describe_sizes(found: Inspection) -> str:
    (common, _), by_area = found.sizes[0], sorted(found.sizes, key=lambda size: size[0][0] * size[0][1])
    if len(by_area) == 1:
        return f"{common[0]} x {common[1]} pixels"
    (least, _), (most, _) = by_area[0], by_area[-1]
    edges = f"{least[0]} x {least[1]} to {most[0]} x {most[1]}"
    return f"{edges}, mostly {common[0]} x {common[1]} pixels"


def _band_table(found: Inspection) -> Table:
    coverage = "all tiles" if found.statistics_of_all else f"a sample of {found.measured.tiles:,} tiles"
    table = _new_table(f"bands, stored values of {coverage}", Column("band", no_wrap=True))
    is_known_sensor = any(spectral_band(name, found.sensor) for name in found.band_names)
    if is_known_sensor:
        table.add_column("nm", justify="right", no_wrap=True, style="dim")
        table.add_column("region", no_wrap=True, style="dim")
    for name in ("mean", "std", "min", "p1", "p50", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("p1…p99", no_wrap=True)
    for number, name in enumerate(found.band_names):
        wavelength, region = spectral_band(name, found.sensor) or (0, "")
        spectral = [f"{wavelength:g}" if wavelength else "", region] if is_known_sensor else []
        table.add_row(escape(name), *spectral, *_statistics_row(found, number), draw_bars(found.histograms[number]))
    return table


def _statistics_row(found: Inspection, band: int) -> list[str]:
    statistics = found.statistics
    percentiles = [statistics.percentiles[percent][band] for percent in ("1", "50", "99")]
    values = [statistics.mean[band], statistics.std[band], statistics.minimum[band], *percentiles]
    return [_format_value(value) for value in (*values, statistics.maximum[band])]


def _format_value(value: float) -> str:
    """Format with three significant digits or more, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def draw_bars(counts: list[int]) -> str:
    """Draw a histogram in one line; the highest bar is full, and only empty bins are blank."""
    heights: Pixels = np.ceil(np.array(counts) / max(1, *counts) * len(_BARS)).astype(int)
    return "".join(_BARS[height - 1] if height else " " for height in heights)


def _class_table(found: Inspection) -> list[RenderableType]:
    if not found.labels:
        return []
    table = _new_table("tiles per class", "class", Column("tiles", justify="right"), Column("share", justify="right"))
    total = max(1, sum(found.labels.values()))
    for name, count in found.labels.items():
        table.add_row(escape(name), f"{count:,}", f"{count / total:.1%}")
    return [table]


def _damaged_table(found: Inspection) -> list[RenderableType]:
    damaged = found.measured.damaged
    if not damaged:
        return []
    table = _new_table("damaged tiles", Column("tile", justify="right"), Column("reason", overflow="fold"))
    for index, reason in damaged[:_MAX_LISTED]:
        table.add_row(str(index), escape(reason))
    if len(damaged) > _MAX_LISTED:
        table.add_row("…", f"and {len(damaged) - _MAX_LISTED:,} more")
    return [table]


def _new_table(title: str, *columns: Column | str) -> Table:
    return Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))


def _format_bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
