"""Write small rasters to build tiles from, and read built tiles without our own readers."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import rasterio
from PIL import Image
from rasterio.transform import Affine

FIXTURES = Path(__file__).parents[1] / "fixtures"
UTM = "EPSG:32618"


def save_raster(path: Path, pixels: Any, crs: str | None = UTM, origin=(0.0, 0.0), metres=10.0, **more: Any) -> Any:
    """Write [bands, height, width] as a GeoTIFF whose upper left corner lies at `origin`; return the pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = more.pop("names", None)
    mask = more.pop("mask", None)
    colour_table = more.pop("colour_table", None)
    bands, height, width = pixels.shape
    where = {"crs": crs, "transform": Affine(metres, 0, origin[0], 0, -metres, origin[1])} if crs else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=pixels.dtype, **where, **more
        ) as file:
            file.write(pixels)
            for number, name in enumerate(names or (), start=1):
                file.set_band_description(number, name)
            if colour_table is not None:
                file.write_colormap(1, colour_table)
            if mask is not None:
                file.write_mask(mask)
    return pixels


def noise(bands: int, height: int, width: int, dtype: str = "uint16", seed: int = 0, low: int = 100, high: int = 3000):
    high = min(high, 200) if dtype == "uint8" else high
    return np.random.default_rng(seed).integers(low, high, (bands, height, width)).astype(dtype)


def rows_of(out: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Return every row of the shards in `out`, in order, with imagery decoded to [bands, height, width]."""
    rows = [
        row for path in sorted(out.glob("tiles-*.parquet")) for row in pq.read_table(path, columns=columns).to_pylist()
    ]
    for row in rows:
        for column in ("image", "image_pair"):
            if column in row:
                row[column] = decode(row[column])
    return rows


def decode(stored: Any) -> Any:
    if isinstance(stored, bytes):
        return np.load(io.BytesIO(stored), allow_pickle=False)
    pixels = np.asarray(Image.open(io.BytesIO(stored["bytes"])))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def facts_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "__moco__/tiles.json").read_text())
