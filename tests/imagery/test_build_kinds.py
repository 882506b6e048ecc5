"""Kinds of imagery that compete, and the options that choose."""

import numpy as np
import pytest
from support.build_options import follow_each, refused
from support.builds import build, save_picture
from support.geo_files import noise, save_raster

from moco_accel.common.errors import UserError


def competing(root, kind):
    """Write two kinds of imagery of 32 x 32 pixels."""
    if kind == "grey and RGB":
        save_picture(root / "a/1.png", 32, 32)
        save_picture(root / "b/2.png", 32, 32, bands=1)
    elif kind == "types":
        save_raster(root / "x_a.tif", noise(2, 32, 32), names=["B4", "B8"])
        save_raster(root / "y_a.tif", noise(2, 32, 32, "float32"), names=["B4", "B8"])
        save_raster(root / "z_a.tif", noise(2, 32, 32, "float32"), names=["B4", "B8"])
    elif kind == "unnamed":
        save_raster(root / "4/a.tif", noise(4, 32, 32), photometric="minisblack")
        save_raster(root / "5/a.tif", noise(5, 32, 32), photometric="minisblack")
    elif kind == "products":
        for number in range(5):
            save_raster(root / f"{number}_AnalyticMS_SR.tif", noise(2, 32, 32), names=["B4", "B8"])
            save_raster(root / f"{number}_AnalyticMS_TOAR.tif", noise(2, 32, 32), names=["B4", "B8"])
    elif kind == "resolutions":
        for number in range(5):
            save_raster(root / f"10m/{number}.tif", noise(2, 64, 64), names=["B4", "B8"])
            save_raster(root / f"20m/{number}.tif", noise(2, 32, 32), names=["B4", "B8"])
    else:
        for name, scale in (("a", 1e-4), ("b", 2.75e-5)):
            save_raster(root / f"{name}.tif", noise(1, 32, 32), names=["B4"])
            import rasterio

            with rasterio.open(root / f"{name}.tif", "r+") as file:
                file.scales = (scale,)


@pytest.mark.parametrize("kind", ["grey and RGB", "types", "unnamed", "products", "resolutions", "scale tags"])
def test_competing_kinds_are_refused_and_each_option_of_the_message_builds_one(tmp_path, kind):
    competing(tmp_path / "s", kind)
    message = refused(tmp_path / "s")
    assert "holds 2 kinds of imagery, of which one can be built; choose" in message
    one, other = follow_each(tmp_path / "s", message)
    assert not one & other
    assert len(one | other) == sum(1 for path in (tmp_path / "s").rglob("*.*"))


@pytest.mark.parametrize("kind", ["types", "scale tags"])
def test_kinds_compete_among_scenes_that_have_the_bands_of_the_option(tmp_path, kind):
    competing(tmp_path / "s", kind)
    for given in ({"bands": ["B4"]}, {"band_names": ["x", "y"][: 1 + (kind == "types")]}):
        one, other = follow_each(tmp_path / "s", refused(tmp_path / "s", **given), **given)
        assert not one & other
        assert len(one | other) == sum(1 for path in (tmp_path / "s").rglob("*.*"))


def test_scenes_without_names_do_not_compete_with_those_of_the_bands_asked_for(tmp_path):
    save_raster(tmp_path / "s/a.tif", noise(2, 32, 32), names=["B4", "B8"])
    save_raster(tmp_path / "s/b.tif", noise(4, 320, 32), photometric="minisblack")
    built = build(tmp_path / "s", tmp_path / "out", tile_size=32, bands=["B8"])
    assert (built.num_tiles, [path for path, _ in built.left_out]) == (1, [f"{tmp_path}/s/b.tif"])


SPACENET = {"MUL": (8, 32), "MUL-PanSharpen": (8, 64), "PAN": (1, 64), "RGB-PanSharpen": (3, 64)}


def test_each_product_of_spacenet_is_counted_and_can_be_built(tmp_path):
    for number in range(1, 4):
        for product, (count, side) in SPACENET.items():
            path = tmp_path / f"s/{product}/{product}_AOI_2_img{number}.tif"
            save_raster(path, noise(count, side, side, seed=number), photometric="minisblack")
    message = refused(tmp_path / "s")
    assert "holds 4 kinds of imagery" in message
    assert "3 files (12 windows) of [8 without names] uint16 (MUL PanSharpen), e.g. MUL-PanSharpen/" in message
    paths = follow_each(tmp_path / "s", message)
    assert sorted(sorted({path.split("/")[0] for path in found}) for found in paths) == [[name] for name in SPACENET]
    assert sum(map(len, paths)) == 12


def test_bigearthnet_v2_holds_two_kinds_beside_its_reference_maps(tmp_path):
    s1, s2 = "S1A_IW_GRDH_1SDV_20170613T165043_33UUP", "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    for number in ("26_57", "61_39"):
        for band in ("VV", "VH"):
            path = tmp_path / f"s/BigEarthNet-S1/{s1}_{number}/{s1}_{number}_{band}.tif"
            save_raster(path, noise(1, 32, 32, "float32"))
        for band, metres in (("B02", 10), ("B05", 20), ("B8A", 20), ("B01", 60)):
            side = 320 // metres
            path = tmp_path / f"s/BigEarthNet-S2/{s2}/{s2}_{number}/{s2}_{number}_{band}.tif"
            save_raster(path, noise(1, side, side), metres=metres)
        classes = np.random.default_rng(0).choice([111, 211, 312], (1, 32, 32)).astype(np.uint16)
        save_raster(tmp_path / f"s/Reference_Maps/{s2}/{s2}_{number}/{s2}_{number}_reference_map.tif", classes)
    message = refused(tmp_path / "s", max_nodata=1.0)
    assert "holds 2 kinds of imagery" in message
    radar, optical = sorted(follow_each(tmp_path / "s", message), key=min)
    assert {path.split("/")[0] for path in radar} == {"BigEarthNet-S1"}
    assert {path.split("/")[0] for path in optical} == {"BigEarthNet-S2"}
    assert len(radar) == len(optical) == 2
    built = build(tmp_path / "s", tmp_path / "radar", tile_size=32, only=["BigEarthNet-S*/**/*_V?.tif"])
    assert (built.num_tiles, built.metadata.bands, built.metadata.sensor) == (2, ["vv", "vh"], "sentinel1")


def test_scenes_of_different_days_are_one_kind(tmp_path):
    for day in ("20200101", "20200601"):
        save_raster(tmp_path / f"s/T18_{day}_SR.tif", noise(2, 32, 32), names=["B4", "B8"])
    assert build(tmp_path / "s", tmp_path / "out").num_tiles == 2


def test_only_must_match_something(tmp_path):
    save_picture(tmp_path / "s/a/1.png", 32, 32)
    with pytest.raises(UserError) as caught:
        build(tmp_path / "s", tmp_path / "out", only=["b/*"])
    assert str(caught.value).endswith(
        f"--only='b/*' matches none of the 1 images in '{tmp_path}/s', e.g. a/1.png; --only '*.png' works"
    )
    assert build(tmp_path / "s", tmp_path / "out", only=["*.png"]).num_tiles == 1
