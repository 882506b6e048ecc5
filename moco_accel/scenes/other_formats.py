"""Formats that a build does not read itself, and the command that makes imagery of each readable."""

from __future__ import annotations

import shlex
from pathlib import Path

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2")
_GRIDS = {".nc": "NETCDF", ".nc4": "NETCDF", ".h5": "HDF5", ".hdf5": "HDF5", ".he5": "HDF5", ".hdf": "HDF4_SDS"}
_RASTERS = (".vrt", ".img", ".dat", ".bil", ".bip", ".bsq", ".ntf", ".webp", ".bmp", ".gif")
OTHER_SUFFIXES = (*_TARS, ".zip", *_GRIDS, *_RASTERS, ".npy")


def reading_command(path: Path) -> str | None:
    """Return what makes a file's imagery readable, as the end of a message; None if its name is that of no format.

    An ENVI file of raw numbers counts if its .hdr lies beside it.
    """
    name, folder = path.name.lower(), path.with_suffix("").name.removesuffix(".tar")
    file, out = shlex.quote(str(path)), shlex.quote(str(path.with_name(folder)))
    tif = shlex.quote(str(path.with_name(folder + ".tif")))
    if name.endswith(_TARS):
        return f"mkdir {out} && tar -xf {file} -C {out} unpacks it"
    if name.endswith(".zip"):
        return f"python -m zipfile -e {file} {out} unpacks it"
    if kind := _GRIDS.get(path.suffix.lower()):
        grid = shlex.quote(f'{kind}:"{path}":VARIABLE')
        return f"gdalinfo {file} lists its variables, and gdal_translate {grid} {tif} makes a GeoTIFF of one"
    if path.suffix.lower() == ".npy":
        return "arrays need no build: data.source takes their folder"
    has_header = path.with_suffix(".hdr").is_file() or Path(f"{path}.hdr").is_file()
    if name.endswith(_RASTERS) and (has_header or path.suffix.lower() not in (".dat", ".bil", ".bip", ".bsq")):
        return f"rio convert {file} {tif} makes a GeoTIFF of it"
    return None
