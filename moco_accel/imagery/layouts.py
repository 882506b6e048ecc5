"""What a scene holds, read off its headers: chosen bands by name, dtype, grid, and what counts as no data."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moco_accel.bands import RGB, canonical_bands, select_bands
from moco_accel.imagery.grids import Affine, Grid, common_grid
from moco_accel.imagery.pictures import UnreadableImage, failures_of, picture_header, sniff
from moco_accel.imagery.scenes import Scene
from moco_accel.recipe_text import RecipeError

DTYPES = ("uint8", "uint16", "int16", "float32")
# no other: some of GDAL's formats name further files to open
_DRIVERS = {"tiff": "GTiff", "jpeg2000": "JP2OpenJPEG", "jpeg": "JPEG", "png": "PNG", "png16": "PNG"}


@dataclass(frozen=True)
class Layout:
    """A scene's chosen bands and how to read them.

    `sources` are (file, band number in it) of each band, or none for a picture, of which `picked` says the bands.
    No data is where a band has its `nodata` number, where a mask or alpha band says so (`masked`; `alpha`: the file's
    last band is it), and, when nothing is declared for a satellite's scene, where all bands are 0 (`zeros`).
    `resampled` are bands of coarser pixels. Without band names `bands` is empty and `unnamed` says how many there are.
    """

    scene: Scene
    bands: tuple[str, ...]
    dtype: str
    grid: Grid
    sources: tuple[tuple[Path, int], ...] = ()
    picked: tuple[int, ...] = ()
    nodata: tuple[float | None, ...] = ()
    masked: bool = False
    alpha: bool = False
    zeros: bool = False
    striped: bool = False
    resampled: tuple[str, ...] = ()
    unnamed: int = 0

    @property
    def key(self) -> tuple[tuple[str, ...], str, int]:
        """Scenes of one set of tiles share it."""
        return self.bands, self.dtype, self.unnamed

    def __str__(self) -> str:
        names = ", ".join(self.bands) if self.bands else f"{self.unnamed} without names"
        return f"[{names}] {self.dtype}"


class NotBandFiles(Exception):  # noqa: N818 - a finding, not a failure
    """Files named like the band files of one scene hold several bands each: every one is a scene."""


def describe(
    scene: Scene, bands: Sequence[str] | None, band_names: Sequence[str] | None, nodata: float | None
) -> Layout:
    """Open a scene's headers. Raises UnreadableImage, NotBandFiles, and RecipeError when rasterio is absent."""
    header = None if scene.file_bands else picture_header(scene.files[0])
    if header is None:
        with failures_of(scene.files[0], "has a damaged header"):
            return _describe_raster(scene, bands, band_names, nodata)
    have, height, width = header
    names = _given(band_names, len(have)) or have
    picked = _select(bands, names, scene)
    values = (nodata,) * len(picked) if nodata is not None else ()
    chosen = tuple(names[index] for index in picked)
    return Layout(scene, chosen, "uint8", Grid(height, width), picked=tuple(picked), nodata=values)


def load_rasterio() -> Any:
    """The module `rasterio`. Raises RecipeError when it is not installed."""
    try:
        import rasterio
        import rasterio.errors
    except ImportError:
        raise RecipeError(
            "SRC holds rasters that need rasterio, which is absent; pip install 'moco-accel[geo]'"
        ) from None
    return rasterio


def open_raster(path: Path) -> Any:
    """A rasterio dataset. Raises UnreadableImage."""
    driver = _DRIVERS[sniff(path)]
    rasterio = load_rasterio()
    with warnings.catch_warnings(), failures_of(path, "cannot be opened"):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path, driver=driver)


def _describe_raster(
    scene: Scene, bands: Sequence[str] | None, band_names: Sequence[str] | None, nodata: float | None
) -> Layout:
    with ExitStack() as stack:
        if not scene.file_bands:
            return _describe_file(scene, stack.enter_context(open_raster(scene.files[0])), bands, band_names, nodata)
        usual = [band for band in scene.file_bands if band != scene.panchromatic or len(scene.file_bands) == 1]
        chosen = [scene.file_bands[index] for index in _select(bands or usual, scene.file_bands, scene)]
        files = [scene.files[scene.file_bands.index(band)] for band in chosen]
        datasets = [stack.enter_context(open_raster(path)) for path in files]
        if any(dataset.count != 1 for dataset in datasets):
            raise NotBandFiles
        grid, coarse = common_grid(datasets)
        sources = tuple((path, 1) for path in files)
        resampled = tuple(band for band, is_coarse in zip(chosen, coarse, strict=True) if is_coarse)
        return _layout(scene, chosen, datasets, [1] * len(files), grid, sources, nodata, resampled)


def _describe_file(
    scene: Scene, dataset: Any, bands: Sequence[str] | None, band_names: Sequence[str] | None, nodata: float | None
) -> Layout:
    kinds = [kind.name for kind in dataset.colorinterp]
    if "palette" in kinds:
        raise UnreadableImage("has a colour table, so its numbers are classes or palette entries, not intensities")
    every = list(range(1, dataset.count + 1))
    # what GDAL calls alpha is often a fourth band that nobody named; a name, or --band-names, says so
    hidden = [] if band_names and len(band_names) == len(every) else [n for n in every if _is_alpha(dataset, n)]
    numbers = [number for number in every if number not in hidden]
    names = _given(band_names, len(numbers)) or _own_names(dataset, numbers)
    picked = _select(bands, names, scene) if names else list(range(len(numbers)))
    chosen, numbers = [names[index] for index in picked] if names else [], [numbers[index] for index in picked]
    crs = dataset.crs.to_string() if dataset.crs else None
    transform: Affine = tuple(dataset.transform)[:6] if crs else (1, 0, 0, 0, 1, 0)
    grid = Grid(dataset.height, dataset.width, crs, transform)
    sources = tuple((scene.files[0], number) for number in numbers)
    layout = _layout(scene, chosen, [dataset] * len(numbers), numbers, grid, sources, nodata)
    is_shown = "alpha" in kinds and not hidden
    return replace(layout, masked=False) if is_shown else replace(layout, alpha=bool(hidden))


def _is_alpha(dataset: Any, number: int) -> bool:
    name = (dataset.descriptions[number - 1] or "alpha").lower()
    return dataset.colorinterp[number - 1].name == "alpha" and "alpha" in name


def _layout(
    scene: Scene, bands: Sequence[str], datasets: Sequence[Any], numbers: Sequence[int], grid: Grid,
    sources: tuple[tuple[Path, int], ...], nodata: float | None, resampled: tuple[str, ...] = (),
) -> Layout:  # fmt: skip
    pairs = list(zip(datasets, numbers, strict=True))
    dtype = _common_dtype([dataset.dtypes[number - 1] for dataset, number in pairs])
    declared = [nodata if nodata is not None else dataset.nodatavals[number - 1] for dataset, number in pairs]
    values = tuple(value if _fits(value, dtype) else None for value in declared)
    flags = {flag.name for dataset in datasets for flag in dataset.mask_flag_enums[0]}
    masked = bool(flags & {"per_dataset", "alpha"})
    nothing = all(value is None for value in values) and not masked
    blocks = [dataset.block_shapes[0] for dataset in datasets]
    striped = all(width == dataset.width for (_, width), dataset in zip(blocks, datasets, strict=True))
    zeros = nothing and scene.sensor is not None and dtype != "float32"
    unnamed = 0 if bands else len(numbers)
    return Layout(
        scene, tuple(bands), dtype, grid, sources, (), values, masked, False, zeros, striped, resampled, unnamed
    )  # fmt: skip


def _fits(value: float | None, dtype: str) -> bool:
    """A nodata number outside the dtype's range marks nothing."""
    if value is None or dtype == "float32":
        return value is not None
    limits = np.iinfo(dtype)
    return limits.min <= value <= limits.max and float(value).is_integer()


def _common_dtype(dtypes: Sequence[str]) -> str:
    if len(set(dtypes)) > 1:
        raise UnreadableImage(f"has bands of different dtypes ({', '.join(sorted(set(dtypes)))})")
    if dtypes[0] not in DTYPES:
        hint = "gdal_translate -ot Float32 makes it float32" if dtypes[0] != "int8" else "gdal_translate -ot Int16"
        raise UnreadableImage(f"is {dtypes[0]}; tiles can be {', '.join(DTYPES)}: {hint}")
    return dtypes[0]


def _given(band_names: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    if band_names and len(band_names) != count:
        raise UnreadableImage(f"has {count} bands, --band-names={','.join(band_names)} names {len(band_names)}")
    return tuple(canonical_bands(band_names)) if band_names else None


def _own_names(dataset: Any, numbers: Sequence[int]) -> tuple[str, ...]:
    """From descriptions, else from colours, else RGB or grey for three or one of 8 bits, else none."""
    described = [dataset.descriptions[number - 1] for number in numbers]
    colours = [dataset.colorinterp[number - 1].name for number in numbers]
    for names in (described, colours if "gray" not in colours else []):
        if names and all(name and name != "undefined" for name in names) and _distinct(names):
            return tuple(canonical_bands(names))
    if dataset.dtypes[numbers[0] - 1] == "uint8" and len(numbers) in (1, 3):
        return RGB if len(numbers) == 3 else ("grey",)
    return ()


def _distinct(names: Sequence[str]) -> bool:
    try:
        return bool(canonical_bands(names))
    except RecipeError:
        return False


def _select(bands: Sequence[str] | None, names: Sequence[str], scene: Scene) -> list[int]:
    try:
        return select_bands(bands, names, "--bands", scene.name) if bands else list(range(len(names)))
    except RecipeError as error:
        raise UnreadableImage(re.sub(r"^--bands=", "lacks bands: --bands=", str(error))) from None
