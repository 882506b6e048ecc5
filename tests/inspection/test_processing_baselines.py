"""Sentinel-2 tiles with the offset of baseline 04.00, without it, and a mix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tile_files import CLOUD, FIELD, FOREST, GRAVEL, SAND, SENTINEL2, SNOW, WATER, spectral_tiles

from moco_accel.inspection.processing_baselines import classify_baselines, darkness, may_be_sentinel2


def baselines(tiles):
    cirrus = 10 if tiles and len(tiles[0]) == 13 else None
    return classify_baselines([dark for tile in tiles if (dark := darkness(tile, cirrus))])


@pytest.mark.parametrize(
    "spectra",
    [[WATER], [FOREST], [SNOW], [CLOUD], [SAND], [WATER, FOREST, FIELD], [WATER, SNOW, CLOUD, FOREST], [GRAVEL, WATER]],
)
def test_level_1c_is_classified_by_its_cirrus_band(spectra):
    tiles = spectral_tiles([[*spectrum[:10], 12, *spectrum[10:]] for spectrum in spectra], 60)
    later = [tile + 1000 for tile in tiles]
    assert baselines(tiles).verdict == "without"
    assert baselines(later).verdict == "with"
    assert baselines(tiles + later[:3]).verdict == "mix"
    assert baselines(tiles[:3] + later).verdict == "mix"


@pytest.mark.parametrize("spectra", [[WATER], [FOREST], [WATER, FOREST], [WATER, FOREST, FIELD], [FOREST, FIELD]])
def test_one_baseline_is_not_a_mix(spectra):
    tiles = spectral_tiles(spectra, 120)
    assert baselines(tiles).verdict == "without"
    assert baselines([tile + 1000 for tile in tiles]).verdict == "with"


@pytest.mark.parametrize(
    "spectra",
    [
        [SNOW],
        [CLOUD],
        [SAND],
        [GRAVEL],
        [SAND, WATER],
        [GRAVEL, SAND, WATER],
        [GRAVEL, WATER],
        [SAND, GRAVEL, FIELD],
        [WATER, SNOW, CLOUD, FOREST],
    ],
)
@pytest.mark.parametrize("bands", [slice(None), [3, 2, 1]])
def test_deserts_snow_and_clouds_are_not_a_mix(spectra, bands):
    found = baselines([tile[bands] for tile in spectral_tiles(spectra, 200)])
    assert found.verdict in ("without", "unclear"), found


@pytest.mark.parametrize("share", [0.03, 0.5, 0.97])
@pytest.mark.parametrize("bands", [slice(None), [3, 2, 1]])
def test_a_mix_is_detected(share, bands):
    tiles = [tile[bands] for tile in spectral_tiles([WATER, FOREST], 400)]
    later = np.random.default_rng(1).random(400) < share
    mixed = [tile + 1000 if offset else tile for tile, offset in zip(tiles, later, strict=True)]
    found = baselines(mixed)
    assert found.verdict == "mix", found
    assert found.without <= 400 - later.sum()
    assert 0 < found.with_offset <= later.sum()
    assert found.without + found.with_offset + found.unclear == 400


def fixture_tiles():
    """16 tiles of 32 pixels and 13 bands from a real level-1C scene; coarser bands are repeated."""
    folder = Path(__file__).parents[1] / "fixtures" / "sentinel2"
    layers = []
    for band in SENTINEL2:
        with Image.open(folder / f"s2_{band if band == 'B8A' else 'B' + band[1:].zfill(2)}.tif") as image:
            layer = np.array(image)
        times = -(-128 // len(layer))
        layers.append(layer.repeat(times, 0).repeat(times, 1)[:128, :128])
    return list(np.stack(layers).reshape(13, 4, 32, 4, 32).transpose(1, 3, 0, 2, 4).reshape(16, 13, 32, 32))


@pytest.mark.parametrize("bands", [slice(None), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12]])
def test_baselines_of_a_real_scene(bands):
    tiles = [tile[bands] for tile in fixture_tiles()]
    later = [np.where(tile == 0, 0, tile + 1000).astype(np.uint16) for tile in tiles]
    assert baselines(tiles).verdict == "without"
    assert baselines(later).verdict == "with"
    assert baselines(tiles[:13] + later[13:]).verdict == "mix"
    assert baselines(tiles[:3] + later[3:]).verdict == "mix"


def test_nodata_does_not_hide_the_offset():
    tiles = [tile + 1000 for tile in spectral_tiles([WATER, FOREST], 40)]
    for tile in tiles:
        tile[:, :, :20] = 0
    assert baselines(tiles).verdict == "with"
    assert darkness(np.zeros((3, 32, 32), np.uint16)) is None
    assert baselines([]).verdict == "unclear"


def test_darkness_is_the_first_percentile_of_the_darkest_and_the_third_band():
    tile = np.arange(1, 1001, dtype=np.uint16).reshape(1, 20, 50) + np.array([0, 100, 300, 200])[:, None, None]
    assert darkness(tile.astype(np.uint16)) == (11, 211)
    assert darkness(tile[:1].astype(np.uint16)) == (11, 11)


def test_only_sentinel2_has_baselines():
    assert may_be_sentinel2(SENTINEL2, 13, "uint16", None)
    assert may_be_sentinel2(["B04", "B8a"], 2, "int16", None)
    assert may_be_sentinel2(["B4", "B3", "B2"], 3, "uint16", "sentinel2")
    assert may_be_sentinel2(None, 13, "uint16", None)
    assert not may_be_sentinel2(["B4", "B3", "B2"], 3, "uint16", None)  # Landsat has them too
    assert not may_be_sentinel2(["B4", "B12"], 2, "uint16", "landsat8")
    assert not may_be_sentinel2(SENTINEL2, 13, "uint8", "sentinel2")
    assert not may_be_sentinel2(None, 4, "uint16", None)
