"""What a scene holds, read off its headers: chosen bands by name, dtype, grid, and what counts as no data."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import RGB, canonical_bands, example_bands, select_bands
from moco_accel.scenes.alpha import called_alpha, is_mask
from moco_accel.scenes.grids import Affine, Grid, common_grid
from moco_accel.scenes.pictures import UnreadableImage, failures_of, picture_header, sniff
from moco_accel.scenes.scenes import Scene

DTYPES = ("uint8", "uint16", "int16", "float32")
LOWEST_FLOAT = float(np.finfo(np.float32).min)  # what GDAL and most of its users mark no data with
# no other: some of GDAL's formats name further files to open
_MAX_PACKED = 1100  # pixels per byte of the emptiest JPEG or PNG; TIFF and JPEG 2000 have no such limit
_DRIVERS = {"tiff": "GTiff", "jpeg2000": "JP2OpenJPEG", "jpeg": "JPEG", "png": "PNG", "png16": "PNG"}


@dataclass(frozen=True)
class Layout:
    """A scene's chosen bands and how to read them.

    `sources` are (file, band number in it) of each band, or none for a picture, of which `picked` says the bands.
    No data is where a band has its `nodata` number, where a mask or alpha band says so (`masked`; `alpha`: the file's
    last band is it), and, when nothing is declared for a satellite's scene, where all bands are 0 (`zeros`).
    `resampled` are bands of coarser pixels. Without band names `bands` is empty and `unnamed` says how many there are.
    `sun_elevation` in degrees, where a Landsat scene's metadata lie beside it. `near_alpha`: the last band is called
    alpha, and holds too many numbers to be a mask.
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
    sun_elevation: float | None = None
    near_alpha: bool = False

    @property
    def key(self) -> tuple[tuple[str, ...], str, int]:
        """Scenes of one set of tiles share it."""
        return self.bands, self.dtype, self.unnamed

    def __str__(self) -> str:
        names = ", ".join(self.bands) if self.bands else f"{self.unnamed} without names"
        return f"[{names}] {self.dtype}"


class NotBandFiles(UnreadableImage):
    """Files named like the band files of one scene hold several bands each: every one is a scene."""


def describe(
    scene: Scene, bands: Sequence[str] | None, band_names: Sequence[str] | None, nodata: float | None
) -> Layout:
    """Open a scene's headers. Raises UnreadableImage, NotBandFiles, and UserError when rasterio is absent."""
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
    """The module `rasterio`. Raises UserError when it is not installed."""
    try:
        import rasterio
        import rasterio.errors
    except ImportError:
        raise UserError(
            "SRC holds rasters that need rasterio, which is absent; pip install 'moco-accel[geo]'"
        ) from None
    return rasterio


def open_raster(path: Path) -> Any:
    """A rasterio dataset. Raises UnreadableImage."""
    driver = _DRIVERS[sniff(path)]
    rasterio = load_rasterio()
    with warnings.catch_warnings(), failures_of(path, "cannot be opened"):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        dataset = rasterio.open(path, driver=driver)
    if driver in ("JPEG", "PNG") and dataset.width * dataset.height > _MAX_PACKED * path.stat().st_size:
        dataset.close()  # or it would be searched for tiles for hours
        raise UnreadableImage(f"is damaged (its {path.stat().st_size:,} bytes cannot hold that many pixels)")
    return dataset


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
        layout = _layout(scene, chosen, datasets, [1] * len(files), grid, sources, nodata, resampled)
        return replace(layout, sun_elevation=_sun_elevation(scene))


def _sun_elevation(scene: Scene) -> float | None:
    """Degrees above the horizon, from the _MTL.txt beside the band files of a Landsat scene; None without one."""
    path = scene.files[0].with_name(re.sub(r"_B\d+$", "", scene.files[0].stem, flags=re.IGNORECASE) + "_MTL.txt")
    text = path.read_text(errors="replace") if scene.sensor == "landsat8" and path.is_file() else ""
    found = re.search(r"SUN_ELEVATION = (\d+\.?\d*)", text)
    return float(found[1]) if found else None


def _describe_file(
    scene: Scene, dataset: Any, bands: Sequence[str] | None, band_names: Sequence[str] | None, nodata: float | None
) -> Layout:
    kinds = [kind.name for kind in dataset.colorinterp]
    if "palette" in kinds:
        raise UnreadableImage("has a colour table, so its numbers are classes or palette entries, not intensities")
    every = list(range(1, dataset.count + 1))
    # what GDAL calls alpha is often a fourth band that nobody named; its name, --band-names or its numbers say so
    candidates = [] if band_names and len(band_names) == len(every) else called_alpha(dataset)
    hidden = [number for number in candidates if is_mask(dataset, number)]
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
    layout = replace(layout, near_alpha=len(candidates) > len(hidden))
    return replace(layout, masked=False) if is_shown else replace(layout, alpha=bool(hidden))


def _layout(
    scene: Scene, bands: Sequence[str], datasets: Sequence[Any], numbers: Sequence[int], grid: Grid,
    sources: tuple[tuple[Path, int], ...], nodata: float | None, resampled: tuple[str, ...] = (),
) -> Layout:  # fmt: skip
    pairs = list(zip(datasets, numbers, strict=True))
    dtype = _common_dtype([dataset.dtypes[number - 1] for dataset, number in pairs])
    declared = [nodata if nodata is not None else dataset.nodatavals[number - 1] for dataset, number in pairs]
    values = tuple(value if fits(value, dtype) else None for value in declared)
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


def fits(value: float | None, dtype: str) -> bool:
    """A nodata number outside the dtype's range marks nothing."""
    if value is None or dtype == "float32":
        return value is not None and (not math.isfinite(value) or abs(value) <= -LOWEST_FLOAT)
    limits = np.iinfo(dtype)
    return limits.min <= value <= limits.max and float(value).is_integer()


def check_nodata(nodata: float | None, dtype: str) -> None:
    """Raises UserError when --nodata is a number that tiles of `dtype` cannot hold."""
    if nodata is None or fits(nodata, dtype):
        return
    limits = np.finfo(np.float32) if dtype == "float32" else np.iinfo(dtype)
    kind = "numbers" if dtype == "float32" else "whole numbers"
    works = -9999 if limits.min < 0 else 0
    raise UserError(
        f"--nodata={nodata:g}: the imagery is {dtype}, which holds {kind} from {limits.min:.8g} to {limits.max:.8g}; "
        f"--nodata {works} works"
    )


def _common_dtype(dtypes: Sequence[str]) -> str:
    if len(set(dtypes)) > 1:
        raise UnreadableImage(f"has bands of different dtypes ({', '.join(sorted(set(dtypes)))})")
    if dtypes[0] not in DTYPES:
        hint = "gdal_translate -ot Float32 makes it float32" if dtypes[0] != "int8" else "gdal_translate -ot Int16"
        if dtypes[0].startswith("complex"):  # a cast would keep the real part alone
            hint = "its magnitude can: gdal_calc.py -A IN --calc='abs(A)' --type=Float32 --outfile=OUT"
        raise UnreadableImage(f"is {dtypes[0]}; tiles can be {', '.join(DTYPES)}: {hint}")
    return dtypes[0]


def _given(band_names: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    if band_names and len(band_names) != count:
        raise UnreadableImage(
            f"has {count} bands, --band-names={','.join(band_names)} names {len(band_names)}; "
            f"--band-names {example_bands(count)} works"
        )
    return tuple(canonical_bands(band_names)) if band_names else None


def _own_names(dataset: Any, numbers: Sequence[int]) -> tuple[str, ...]:
    """From descriptions, else from colours, else RGB or grey for three or one of 8 bits, else none."""
    described = [dataset.descriptions[number - 1] for number in numbers]
    colours = [dataset.colorinterp[number - 1].name for number in numbers]
    for names in (described, [] if {"gray", "alpha"} & set(colours) else colours):
        if names and all(name and name != "undefined" for name in names) and _distinct(names):
            return tuple(canonical_bands(names))
    if dataset.dtypes[numbers[0] - 1] == "uint8" and len(numbers) in (1, 3):
        return RGB if len(numbers) == 3 else ("grey",)
    return ()


def _distinct(names: Sequence[str]) -> bool:
    try:
        return bool(canonical_bands(names))
    except UserError:
        return False


def _select(bands: Sequence[str] | None, names: Sequence[str], scene: Scene) -> list[int]:
    try:
        return select_bands(bands, names, "--bands", scene.name) if bands else list(range(len(names)))
    except UserError as error:
        raise UnreadableImage(re.sub(r"^--bands=", "lacks bands: --bands=", str(error))) from None
