"""The cloud test: tiles skipped because they are white like clouds."""

import numpy as np
import pytest
from support.builds import build
from support.geo_files import FIXTURES, noise, save_raster

from moco_accel.scenes.clouds import cloud_rule
from moco_accel.scenes.find_scenes import Scene, find_scenes
from moco_accel.scenes.layouts import read_layout


@pytest.mark.parametrize(
    ("name", "baseline", "surface", "above", "spread"),
    [
        ("s2", 0, False, 3_500, 1_000),
        ("s2", 400, False, 4_500, 1_000),
        ("l8", 0, False, 22_500, 5_000),
        ("l8", 0, True, 20_000, 3_636),
    ],
)
def test_the_reflectance_threshold_in_stored_values_of_each_sensor(name, baseline, surface, above, spread):
    folder, sensor = {"s2": ("sentinel2", "sentinel2"), "l8": ("landsat8", "landsat8")}[name]
    scene = find_scenes(FIXTURES / folder).scenes[0]
    scene = Scene(scene.name, scene.files, scene.file_bands, sensor, surface, baseline)
    rule = cloud_rule(read_layout(scene, None, None, None))
    assert (rule.above, rule.spread) == (above, spread)
    assert rule.bands == (3, 2, 1)  # B4, B3, B2
    pixels = np.zeros((10, 1, 4), np.uint16)
    pixels[[1, 2, 3], 0] = [[above + 1, above, above + 1, above + 1]] * 3
    pixels[1, 0, 2] += spread - 1
    pixels[1, 0, 3] += spread
    assert rule.is_white(pixels).tolist() == [[True, False, True, False]]


def test_the_threshold_falls_with_the_sun_elevation(tmp_path):
    """At 30 degrees half the light arrives: the threshold is (0.35 · 0.5 + 0.1) / 2e-5."""
    stem = "LC08_L1TP_014034_20200101_20200113_02_T1"
    for name in ("B2", "B3", "B4"):
        pixels = noise(1, 32, 64, low=8_000, high=12_000)
        pixels[:, :, 32:] = 13_760
        save_raster(tmp_path / f"src/{stem}_{name}.TIF", pixels)
    high = build(tmp_path / "src", tmp_path / "high", tile_size=32)
    assert (high.num_tiles, high.skipped) == (2, {})
    assert high.notes[-1].startswith("the cloud test assumes that the sun is overhead, because a scene has no _MTL")
    (tmp_path / f"src/{stem}_MTL.txt").write_text("    SUN_AZIMUTH = 161.2\n    SUN_ELEVATION = 30.00000000\n")
    rule = cloud_rule(read_layout(find_scenes(tmp_path / "src").scenes[0], None, None, None))
    assert (rule.above, rule.spread) == (13_750, 2_500)
    low = build(tmp_path / "src", tmp_path / "low", tile_size=32)
    assert (low.num_tiles, low.skipped) == (1, {"cloud white": 1})
    assert not any("sun" in note for note in low.notes)


def test_white_tiles_are_skipped_only_if_red_green_and_blue_are_known(tmp_path):
    pixels = noise(3, 32, 64, "uint8")
    pixels[:, :17, 32:] = 240
    save_raster(tmp_path / "a.tif", pixels)
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32)
    assert (built.num_tiles, built.skipped) == (1, {"cloud white": 1})
    assert build(tmp_path / "a.tif", tmp_path / "all", tile_size=32, max_cloud=1.0).num_tiles == 2
    built = build(tmp_path / "a.tif", tmp_path / "other", tile_size=32, band_names=("nir", "red", "green"))
    assert built.num_tiles == 2
    assert built.notes == ["no cloud test: it is not known which values of [nir, red, green] uint8 are white"]
