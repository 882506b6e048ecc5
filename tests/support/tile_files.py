"""Shards of known tiles, and Sentinel-2 tiles of ground whose spectrum is known."""

from __future__ import annotations

import io

import datasets
import numpy as np

from moco_accel.sources.shard_writer import write_shards
from moco_accel.sources.tile_facts import TileFacts

SENTINEL2 = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]
# reflectance times 10,000 at the ground, as level 2A gives it; B10 is not in it
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


def write_tiles(folder, tiles, facts=None, columns=None, damaged=()):
    """Shards of .npy tiles; `columns` are more of them, by name: (feature, values)."""
    columns = columns or {}
    features = {"image": datasets.Value("binary")} | {name: feature for name, (feature, _) in columns.items()}
    rows = [
        {"image": npy(tile)[: 200 if index in damaged else None]} | {name: v[index] for name, (_, v) in columns.items()}
        for index, tile in enumerate(tiles)
    ]
    write_shards(rows, datasets.Features(features), folder)
    if facts is not None:
        (folder / "tiles.json").write_text(facts.to_json())
    return folder


def scene(spectra, count, seed=0):
    """`count` uint16 tiles of 32 pixels, of `spectra` in turn, brightness varying between tiles and within them."""
    rng = np.random.default_rng(seed)
    tiles = []
    for index in range(count):
        brightness = rng.uniform(0.7, 1.3) * rng.normal(1, 0.12, (1, 32, 32)).clip(0.5)
        spectrum = np.array(spectra[index % len(spectra)])[:, None, None]
        tiles.append((spectrum * brightness * rng.normal(1, 0.03, (len(spectrum), 32, 32))).clip(1).astype(np.uint16))
    return tiles


def write_known(folder):
    """Ten tiles of two bands: band B8A of tile i is i everywhere; band B4 is 10, half of it 30."""
    tiles = []
    for value in range(10):
        tile = np.full((2, 16, 16), 10, np.uint16)
        tile[0] = value
        tile[1, :8] = 30
        tiles.append(tile)
    return write_tiles(folder, tiles, TileFacts(["B8A", "B4"], "uint16", nodata=None))
