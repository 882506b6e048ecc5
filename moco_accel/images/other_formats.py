"""Files that are not read: other formats, with the command that makes each readable; and what lies beside images."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2")
_GRIDS = {".nc": "NETCDF", ".nc4": "NETCDF", ".h5": "HDF5", ".hdf5": "HDF5", ".he5": "HDF5", ".hdf": "HDF4_SDS"}
_RASTERS = (".vrt", ".img", ".dat", ".bil", ".bip", ".bsq", ".ntf")
_PICTURES = (".webp", ".bmp", ".gif")
_CONVERT = 'import sys; from PIL import Image; Image.open(sys.argv[1]).convert("RGB").save(sys.argv[2])'
SIDECAR_SUFFIXES = (".msk", ".aux.xml")  # GDAL's masks, and what it knows of a file
_MEANING = re.compile(rb"<(?:NoDataValue|Scale|Offset|ColorTable)\b")  # in the latter, that changes what numbers mean
_ASKED_SIDECARS, _MAX_SIDECAR_BYTES = 100, 1 << 20
OTHER_SUFFIXES = (*_TARS, ".zip", *_GRIDS, *_RASTERS, *_PICTURES, ".npy")


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
    if name.endswith(_PICTURES):
        return f"python -c {shlex.quote(_CONVERT)} {file} {tif} makes a TIFF of it"
    has_header = path.with_suffix(".hdr").is_file() or Path(f"{path}.hdr").is_file()
    if name.endswith(_RASTERS) and (has_header or path.suffix.lower() not in (".dat", ".bil", ".bip", ".bsq")):
        return f"rio convert {file} {tif} makes a GeoTIFF of it"
    return None


def meaningful_sidecars(folder: Path, sidecars: Sequence[str], images: Sequence[str]) -> list[str]:
    """Return the files beside `images` by which GDAL reads them otherwise: masks, no data, scale and offset.

    Args:
        sidecars: Files below `folder` that end in SIDECAR_SUFFIXES. Of many .aux.xml a sample is read.
    """
    if not sidecars:
        return []
    known = set(images)
    beside = [name for name in sidecars if name.rpartition(".msk")[0] in known or name[: -len(".aux.xml")] in known]
    described = [name for name in beside if name.endswith(".aux.xml")]
    step = -(-len(described) // _ASKED_SIDECARS) or 1
    return [name for name in beside if name.endswith(".msk")] + [
        name for name in described[::step] if _MEANING.search(_beginning(folder / name))
    ]


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_SIDECAR_BYTES)
    except OSError:  # removed since
        return b""
