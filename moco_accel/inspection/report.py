"""What `moco-data inspect` found, as tables for people and as lines for a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from moco_accel.common.pixels import Pixels
from moco_accel.inspection.inspection import Inspection
from moco_accel.inspection.processing_baselines import explain_baselines
from moco_accel.inspection.spectral import role_of
from moco_accel.recipe.constants import STORED_RANGES
from moco_accel.recipe.text import dump_yaml
from moco_accel.tiles.band_selection import example_names, wants_names
from moco_accel.tiles.resolve import mean_and_std, percentile_range

MAX_LISTED = 10
_BARS = "▁▂▃▄▅▆▇█"


def recipe_fields(found: Inspection) -> dict[str, Any]:
    """The sections `encoder` and `data` that fit these tiles.

    8-bit tiles are scaled as uint8, all else by the 1st and 99th percentile of each band: as reflectance, dark bands
    take up a few per cent of the pixel range, and augmentation's noise drowns them. `mean` and `std` are those of
    scaled pixels.
    """
    count, scaling = len(found.statistics.mean), scaling_of(found)
    if scaling == "percentiles":
        low, high = percentile_range(found.statistics)
    else:
        low, high = ([edge] * count for edge in STORED_RANGES[scaling])
    data: dict[str, Any] = {"source": found.source, "image_column": found.image_column}
    data |= {"pair_column": found.partner_column, "nodata": found.nodata if scaling != "uint8" else None}
    data |= {"stored_bands": found.declared_bands, "bands": found.bands, "scaling": scaling}
    if scaling == "percentiles":
        data |= {"low": low, "high": high}
    data |= mean_and_std(found.measured, low, high)
    pairs = {"augment": {"preset": "seasons"}} if found.partner_column else {}
    return {
        "encoder": {"bands": count},
        "data": {name: value for name, value in data.items() if value is not None},
    } | pairs


def scaling_of(found: Inspection) -> str:
    """The `data.scaling` that suits the stored type."""
    return "uint8" if found.dtype == "uint8" else "percentiles"


def print_inspection(found: Inspection, to: Console) -> None:
    """Tables, warnings, and the recipe's lines."""
    for part in (_overview(found), _bands(found), *_classes(found), *_damaged(found)):
        to.print(part)
        to.print()
    for warning in warnings_of(found):
        to.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True)
    if found.baselines and not found.baselines.is_mix:
        to.print(f"Sentinel-2. {explain_baselines(found.baselines)}", soft_wrap=True)
    if found.baselines and found.baselines.is_mix:
        return
    to.print("For a recipe:")
    to.print(dump_yaml(recipe_fields(found), _to_add(found)).rstrip(), soft_wrap=True, markup=False)


def _to_add(found: Inspection) -> str:
    """What a run asks for beyond `recipe_fields`."""
    count = len(found.statistics.mean)
    if not wants_names(found.bands, count):
        return ""
    return f"to add to data: stored_bands, the names of all {count} bands in their order, e.g. {example_names(count)}"


def warnings_of(found: Inspection) -> list[str]:
    """What to look at before training, most important first."""
    said = []
    if found.baselines and found.baselines.is_mix:
        said.append(explain_baselines(found.baselines))
    if damaged := len(found.measured.damaged):
        share = damaged / found.measured.looked_at
        said.append(f"{damaged:,} of {found.measured.looked_at:,} tiles looked at are damaged ({share:.2%})")
    if found.constant_bands:
        names = ", ".join(found.band_names[band] for band in found.constant_bands)
        said.append(f"the same value everywhere in {names}; data.bands can leave out what nothing can be learnt from")
    if found.bands is None:
        count = len(found.statistics.mean)
        said.append(
            f"the names of the {count} bands are not stored; --band-names, all in their order, names them here, "
            f"data.stored_bands in a recipe"
        )
    if found.no_labels is not None:
        said.append(f"no classes: {found.no_labels}")
    if len(found.sizes) > 1:
        (height, width), tiles = found.sizes[0]
        said.append(f"{len(found.sizes):,} sizes of tiles; the commonest, {height} x {width}, has {tiles:,}")
    return said


def _overview(found: Inspection) -> Table:
    table = Table(title=escape(found.source), show_header=False, title_justify="left", box=None)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _facts(found):
        table.add_row(name, escape(value))
    return table


def _facts(found: Inspection) -> Iterator[tuple[str, str]]:
    measured = found.measured
    size = f", {_bytes(found.bytes_on_disk)}" if found.bytes_on_disk is not None else ""
    yield "tiles", f"{found.tiles:,} in {len(found.shard_sizes):,} {_plural('shard', len(found.shard_sizes))}{size}"
    sample = "all" if measured.looked_at == found.tiles else f"{measured.looked_at:,}, spread evenly"
    yield "looked at", f"{sample}; {len(measured.damaged):,} damaged"
    yield "size", _sizes(found)
    sensor = f" of {found.sensor}" if found.sensor else ""
    yield "bands", f"{len(found.statistics.mean)} x {found.dtype}{sensor}" + ("" if found.bands else ", unnamed")
    nodata = f"pixels of {found.nodata:g}" if found.nodata is not None else "no value stands for it"
    yield "without data", f"{found.statistics.nodata_share:.2%} ({nodata})"
    yield "columns", ", ".join(f"{name} (tiles)" if name == found.image_column else name for name in found.columns)
    for extent in found.extents:
        edges = f"{_edge(extent.left)} to {_edge(extent.right)} E, {_edge(extent.bottom)} to {_edge(extent.top)} N"
        yield "extent", f"{_crs_name(extent.crs)}: {edges}, {extent.tiles:,} tiles"


def _edge(value: float) -> str:
    """Metres without decimals, degrees with four."""
    return f"{value:,.0f}" if abs(value) > 360 else f"{value:.4f}"


def _crs_name(crs: str) -> str:
    """EPSG:32618 as it is; of WKT, which fills a page, the name that it begins with."""
    named = re.match(r'\w+\["([^"]+)"', crs)
    return named[1] if named else crs


def _sizes(found: Inspection) -> str:
    (common, _), by_area = found.sizes[0], sorted(found.sizes, key=lambda size: size[0][0] * size[0][1])
    if len(by_area) == 1:
        return f"{common[0]} x {common[1]} pixels"
    (least, _), (most, _) = by_area[0], by_area[-1]
    edges = f"{least[0]} x {least[1]} to {most[0]} x {most[1]}"
    return f"{edges}, mostly {common[0]} x {common[1]} pixels"


def _bands(found: Inspection) -> Table:
    of = "all tiles" if found.statistics_of_all else f"a sample of {found.measured.tiles:,} tiles"
    table = Table(
        title=f"bands, stored values of {of}",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("band", no_wrap=True)
    has_roles = any(role_of(name, found.sensor) for name in found.band_names)
    for name in ("nm", "sees") if has_roles else ():
        table.add_column(name, justify="right" if name == "nm" else "left", no_wrap=True, style="dim")
    for name in ("mean", "std", "min", "p1", "p50", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("p1…p99", no_wrap=True)
    for number, name in enumerate(found.band_names):
        wavelength, sees = role_of(name, found.sensor) or (0, "")
        roles = [f"{wavelength:g}" if wavelength else "", sees] if has_roles else []
        table.add_row(escape(name), *roles, *_numbers(found, number), bars(found.histograms[number]))
    return table


def _numbers(found: Inspection, band: int) -> list[str]:
    statistics = found.statistics
    percentiles = [statistics.percentiles[percent][band] for percent in ("1", "50", "99")]
    values = [statistics.mean[band], statistics.std[band], statistics.minimum[band], *percentiles]
    return [_plain(value) for value in (*values, statistics.maximum[band])]


def _plain(value: float) -> str:
    """Three digits or more, no exponent that a person would have to read."""
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def bars(counts: list[int]) -> str:
    """A histogram in a line; the highest bar is full, and what holds a pixel is never blank."""
    heights: Pixels = np.ceil(np.array(counts) / max(1, *counts) * len(_BARS)).astype(int)
    return "".join(_BARS[height - 1] if height else " " for height in heights)


def _classes(found: Inspection) -> list[RenderableType]:
    if not found.labels:
        return []
    table = Table(title="tiles per class", title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("class")
    table.add_column("tiles", justify="right")
    table.add_column("share", justify="right")
    total = max(1, sum(found.labels.values()))
    for name, count in found.labels.items():
        table.add_row(escape(name), f"{count:,}", f"{count / total:.1%}")
    return [table]


def _damaged(found: Inspection) -> list[RenderableType]:
    damaged = found.measured.damaged
    if not damaged:
        return []
    table = Table(title="damaged tiles", title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("tile", justify="right")
    table.add_column("what is wrong", overflow="fold")
    for index, reason in damaged[:MAX_LISTED]:
        table.add_row(str(index), escape(reason))
    if len(damaged) > MAX_LISTED:
        table.add_row("…", f"and {len(damaged) - MAX_LISTED:,} more")
    return [table]


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
