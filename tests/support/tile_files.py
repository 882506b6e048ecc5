"""Write shards of tiles whose values are known, and draw Sentinel-2 tiles from known spectra."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from moco_accel.sources.shard_writer import write_shards
from moco_accel.sources.tile_metadata import TileMetadata
from moco_accel.tiles.running_statistics import RunningStatistics

SENTINEL2 = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]
# surface reflectance times 10,000 as in level 2A, which has no B10
WATER = [250, 320, 300, 200, 150, 120, 110, 100, 90, 80, 30, 20]
FOREST = [180, 220, 400, 250, 600, 1800, 2300, 2400, 2500, 2500, 1200, 550]
FIELD = [500, 700, 1000, 1100, 1600, 2500, 2900, 3000, 3200, 3300, 3000, 2100]
SAND = [1100, 1500, 2300, 3100, 3300, 3500, 3700, 3800, 3900, 4000, 4900, 4400]
GRAVEL = [900, 1050, 1400, 1700, 1800, 1900, 2000, 2000, 2100, 2100, 2500, 2300]
SNOW = [9000, 9200, 9100, 9000, 8900, 8700, 8500, 8400, 8200, 7500, 900, 700]
CLOUD = [6000, 5800, 5700, 5700, 5800, 5900, 6000, 6000, 6000, 5500, 4500, 3500]


def npy(tile):
    buffer = io.BytesIO()
    np.save(buffer, tile)
    return buffer.getvalue()


def write_tiles(folder, tiles, metadata=None, columns=None, damaged=()):
    """Write shards of .npy tiles.

    Args:
        columns: (feature, values) of further columns, by name.
        damaged: Indices of tiles whose bytes are truncated.
    """
    columns = columns or {}
    features = {"image": datasets.Value("binary")} | {name: feature for name, (feature, _) in columns.items()}
    rows = [
        {"image": npy(tile)[: 200 if index in damaged else None]} | {name: v[index] for name, (_, v) in columns.items()}
        for index, tile in enumerate(tiles)
    ]
    write_shards(rows, datasets.Features(features), folder)
    if metadata is not None:
        (folder / "tiles.json").write_text(metadata.to_json())
    return folder


def metadata_of(tiles, bands, **fields):
    """Return the metadata of tiles [bands, height, width], with their statistics."""
    running = RunningStatistics(len(bands), tiles[0].dtype)
    for tile in tiles:
        running.add(tile)
    return TileMetadata(bands, str(tiles[0].dtype), statistics=running.statistics(), **fields)


def spectral_tiles(spectra, count, seed=0):
    """Draw uint16 tiles of 32 pixels from `spectra` in turn; brightness varies between tiles and within them."""
    rng = np.random.default_rng(seed)
    tiles = []
    for index in range(count):
        brightness = rng.uniform(0.7, 1.3) * rng.normal(1, 0.12, (1, 32, 32)).clip(0.5)
        spectrum = np.array(spectra[index % len(spectra)])[:, None, None]
        tiles.append((spectrum * brightness * rng.normal(1, 0.03, (len(spectrum), 32, 32))).clip(1).astype(np.uint16))
    return tiles


def write_known_tiles(folder):
    """Write ten tiles of two bands: B8A of tile i is i everywhere; one half of B4 is 10, the other 30."""
    tiles = []
    for value in range(10):
        tile = np.full((2, 16, 16), 10, np.uint16)
        tile[0] = value
        tile[1, :8] = 30
        tiles.append(tile)
    return write_tiles(folder, tiles, TileMetadata(["B8A", "B4"], "uint16", nodata=None))


def write_labelled(folder: Path, count: int, seed: int) -> None:
    """Write tiles of noise in two classes that differ in the direction of stripes, not in colour."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count)
    images = []
    for label in labels:
        stripes = np.kron(draw.integers(0, 2, 5), np.ones(4))[:, None] * np.ones(20)
        pixels = 120 * (stripes if label else stripes.T)[..., None] + draw.integers(0, 130, (20, 20, 3))
        images.append(Image.fromarray(pixels.astype(np.uint8)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["rows", "columns"])})
    folder.mkdir()
    table = datasets.Dataset.from_dict({"image": images, "label": labels.tolist()}, features=features)
    table.to_parquet(folder / "tiles.parquet")
