"""Read a scene's layout from its headers: bands by name, dtype, grid and nodata."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.images.gdal import (
    alpha_bands,
    band_colours,
    has_mask,
    is_mask_band,
    is_white_zero,
    stored_bands,
    to_brightness,
)
from moco_accel.images.headers import STORED_TYPES
from moco_accel.recipe.bands import RGB, canonical_bands, example_bands, format_bands, select_bands
from moco_accel.scenes.find_scenes import Scene
from moco_accel.scenes.grids import Affine, Grid, common_grid
from moco_accel.scenes.image_files import UnreadableImage, as_unreadable, open_raster, read_picture_header
from moco_accel.scenes.pixel_types import WIDE_TYPES, Range, fits_type, sampled_range, tile_type

LOWEST_FLOAT = float(np.finfo(np.float32).min)  # the nodata number of GDAL and most of its users
_BandSources = tuple[tuple[Path, int], ...]  # the file of each band, and its number in it


@dataclass(frozen=True)
class Layout:
    """A scene's chosen bands and how to read them.

    Attributes:
        bands: Their names; empty if they have none.
        sources: Empty for a picture.
        selected: The bands of a picture, from 0.
        nodata: Each band's number for nodata, or None.
        has_mask: Whether a mask or alpha band marks nodata.
        alpha: Whether the file's last band is that mask.
        zero_is_nodata: Whether pixels with 0 in all bands are nodata: in a satellite's scene that declares none.
        striped: Whether all files are stored in whole rows.
        resampled: Bands with coarser pixels than the grid.
        unnamed: How many bands there are, if they have no names.
        sun_elevation: In degrees, if a Landsat scene's metadata lie beside it.
        alpha_is_band: Whether the last band is called alpha but holds too many values for a mask.
        stored_dtype: The files' type, if tiles of `dtype` are cast from it.
        sampled: Lowest and highest sampled value, for whole numbers of such a type.
        is_gone: Whether it changed after its build began, and cannot be cut.
        scales: (scale, offset) of each band, if the files' tags say that stored numbers mean something else.
    """

    scene: Scene
    bands: tuple[str, ...]
    dtype: str
    grid: Grid
    sources: _BandSources = ()
    selected: tuple[int, ...] = ()
    nodata: tuple[float | None, ...] = ()
    has_mask: bool = False
    alpha: bool = False
    zero_is_nodata: bool = False
    striped: bool = False
    resampled: tuple[str, ...] = ()
    unnamed: int = 0
    sun_elevation: float | None = None
    alpha_is_band: bool = False
    stored_dtype: str = ""
    sampled: Range | None = None
    scales: tuple[tuple[float, float], ...] = ()
    is_gone: bool = False

    @property
    def key(self) -> tuple[tuple[str, ...], str, int]:
        """Equal for scenes whose tiles fit together."""
        return self.bands, self.dtype, self.unnamed

    def __str__(self) -> str:
        names = format_bands(self.bands) if self.bands else f"{self.unnamed} without names"
        return f"[{names}] {self.dtype}"


class SeparateScenes(UnreadableImage):
    """Files named like the band files of one scene that hold several bands each: every file is a scene."""


def read_layout(
    scene: Scene, bands: Sequence[str] | None, band_names: Sequence[str] | None, nodata: float | None
) -> Layout:
    """Read a scene's headers.

    Args:
        bands: Names of the bands to read, in this order; None for all but the panchromatic one.
        band_names: Names of all bands as stored; None for the file's own.
        nodata: The number that replaces the files' own for nodata.

    Raises:
        UnreadableImage: If a file is damaged, lacks bands, or holds what cannot be tiles.
        SeparateScenes: If its files are scenes of their own.
        UserError: If rasterio is needed and not installed.
    """
    header = None if scene.file_bands else read_picture_header(scene.files[0])
    if header is None:
        with as_unreadable(scene.files[0], "has a damaged header"):
            if scene.file_bands:
                return _read_band_files(scene, bands, nodata)
            with open_raster(scene.files[0]) as dataset:
                return _read_file_layout(scene, dataset, bands, band_names, nodata)
    own_names, height, width = header
    names = _given_names(band_names, len(own_names)) or own_names
    selected = _select(bands, names, scene)
    values = (nodata,) * len(selected) if nodata is not None else ()
    chosen = tuple(names[index] for index in selected)
    return Layout(scene, chosen, "uint8", Grid(height, width), selected=tuple(selected), nodata=values)


def _read_band_files(scene: Scene, bands: Sequence[str] | None, nodata: float | None) -> Layout:
    usual = [band for band in scene.file_bands if band != scene.panchromatic or len(scene.file_bands) == 1]
    chosen = [scene.file_bands[index] for index in _select(bands or usual, scene.file_bands, scene)]
    files = [scene.files[scene.file_bands.index(band)] for band in chosen]
    with ExitStack() as stack:
        datasets = [stack.enter_context(open_raster(path)) for path in files]
        if any(dataset.count != 1 for dataset in datasets):
            raise SeparateScenes
        grid, coarse = common_grid(datasets)
        sources = tuple((path, 1) for path in files)
        resampled = tuple(band for band, is_coarse in zip(chosen, coarse, strict=True) if is_coarse)
        layout = _layout_of(scene, chosen, datasets, sources, grid, nodata)
        return replace(layout, resampled=resampled, sun_elevation=_sun_elevation(scene))


def _sun_elevation(scene: Scene) -> float | None:
    """Return degrees above the horizon from the _MTL.txt beside a Landsat scene's band files, if there is one."""
    path = scene.files[0].with_name(re.sub(r"_B\d+$", "", scene.files[0].stem, flags=re.IGNORECASE) + "_MTL.txt")
    text = path.read_text(errors="replace") if scene.sensor == "landsat8" and path.is_file() else ""
    found = re.search(r"SUN_ELEVATION = (\d+\.?\d*)", text)
    return float(found[1]) if found else None


def _read_file_layout(
    scene: Scene, dataset: Any, bands: Sequence[str] | None, band_names: Sequence[str] | None, nodata: float | None
) -> Layout:
    colours = band_colours(dataset)
    if "palette" in colours:
        raise UnreadableImage("has a colour table, so its numbers are classes or palette entries, not intensities")
    every = stored_bands(dataset)
    # GDAL often calls a fourth band without a name alpha; its name, --band-names or its values tell
    candidates = [] if band_names and len(band_names) == len(every) else alpha_bands(dataset)
    masks = [number for number in candidates if is_mask_band(dataset, number)]
    numbers = [number for number in every if number not in masks]
    names = _given_names(band_names, len(numbers)) or _own_names(dataset, colours, numbers)
    selected = _select(bands, names, scene) if names else list(range(len(numbers)))
    chosen, numbers = [names[index] for index in selected] if names else [], [numbers[index] for index in selected]
    crs = dataset.crs.to_string() if dataset.crs else None
    transform: Affine = tuple(dataset.transform)[:6] if crs else (1, 0, 0, 0, 1, 0)
    grid = Grid(dataset.height, dataset.width, crs, transform)
    sources = tuple((scene.files[0], number) for number in numbers)
    layout = _layout_of(scene, chosen, [dataset] * len(numbers), sources, grid, nodata)
    hides = bool(masks) or layout.has_mask
    return replace(layout, has_mask=hides, alpha=bool(masks), alpha_is_band=len(candidates) > len(masks))


def _layout_of(
    scene: Scene, bands: Sequence[str], datasets: Sequence[Any], sources: _BandSources, grid: Grid, nodata: float | None
) -> Layout:
    pairs = [(dataset, number) for dataset, (_, number) in zip(datasets, sources, strict=True)]
    stored = _common_dtype([dataset.dtypes[number - 1] for dataset, number in pairs])
    declared = [nodata if nodata is not None else _declared_nodata(dataset, number) for dataset, number in pairs]
    values = tuple(value if fits_type(value, stored) else None for value in declared)
    is_wide, scales = stored in WIDE_TYPES, tuple((x.scales[number - 1], x.offsets[number - 1]) for x, number in pairs)
    sampled = sampled_range(pairs, values) if is_wide and stored != "float64" else None
    dtype = tile_type(stored, [sampled]) if is_wide else stored
    flags = {flag.name for dataset in datasets for flag in dataset.mask_flag_enums[0]}
    is_undeclared = all(value is None for value in values) and not flags & {"per_dataset", "alpha"}
    return Layout(
        scene,
        tuple(bands),
        dtype,
        grid,
        sources,
        nodata=values,
        has_mask=any(has_mask(dataset) for dataset in datasets),
        zero_is_nodata=is_undeclared and scene.sensor is not None and dtype != "float32",
        striped=all(dataset.block_shapes[0][1] == dataset.width for dataset in datasets),
        unnamed=0 if bands else len(sources),
        stored_dtype=stored if is_wide else "",
        sampled=sampled,
        scales=scales if set(scales) != {(1.0, 0.0)} else (),
    )


def _declared_nodata(dataset: Any, number: int) -> float | None:
    value: float | None = dataset.nodatavals[number - 1]
    is_inverted = value is not None and is_white_zero(dataset)
    return float(to_brightness(dataset, np.asarray(value))) if is_inverted else value  # as `AlignedRaster` reads it


def _common_dtype(dtypes: Sequence[str]) -> str:
    if len(set(dtypes)) > 1:
        raise UnreadableImage(f"has bands of different dtypes ({', '.join(sorted(set(dtypes)))})")
    if dtypes[0] not in (*STORED_TYPES, *WIDE_TYPES):
        hint = "gdal_translate -ot Float32 makes it float32"
        if dtypes[0].startswith("complex"):  # a cast would drop the imaginary part
            hint = "its magnitude can: gdal_calc.py -A IN --calc='abs(A)' --type=Float32 --outfile=OUT"
        raise UnreadableImage(f"is {dtypes[0]}; tiles can be {', '.join(STORED_TYPES)}: {hint}")
    return dtypes[0]


def _given_names(band_names: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    if band_names and len(band_names) != count:
        raise UnreadableImage(
            f"has {count} bands, --band-names={format_bands(band_names).replace(', ', ',')} names {len(band_names)}; "
            f"--band-names {example_bands(count)} works"
        )
    return tuple(canonical_bands(band_names)) if band_names else None


def _own_names(dataset: Any, colours: Sequence[str], numbers: Sequence[int]) -> tuple[str, ...]:
    """Return names from descriptions, else from colours, else RGB or grey for 8 bits, else none."""
    described = [dataset.descriptions[number - 1] for number in numbers]
    colours = [colours[number - 1] for number in numbers]
    for names in (described, [] if {"gray", "alpha"} & set(colours) else colours):
        if names and all(name and name != "undefined" for name in names):
            try:
                return tuple(canonical_bands(names))
            except UserError:  # two bands of one name
                continue
    if dataset.dtypes[numbers[0] - 1] == "uint8" and len(numbers) in (1, 3):
        return RGB if len(numbers) == 3 else ("grey",)
    return ()


def _select(bands: Sequence[str] | None, names: Sequence[str], scene: Scene) -> list[int]:
    try:
        return select_bands(bands, names, "--bands", scene.name) if bands else list(range(len(names)))
    except UserError as error:
        raise UnreadableImage(re.sub(r"^--bands=", "lacks bands: --bands=", str(error))) from None
