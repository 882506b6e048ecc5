"""Bands of rasters: alpha bands, polarisations, complex numbers."""

import re

import numpy as np
import pytest
import rasterio
from support.builds import build
from support.geo_files import UTM, noise, rows_of, save_raster

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import RGB


@pytest.mark.parametrize("crs", [UTM, None])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_fourth_band_called_alpha_with_many_values_is_not_a_mask(tmp_path, crs, dtype):
    pixels = save_raster(tmp_path / "a.tif", noise(4, 200, 200, dtype, low=0), crs=crs, photometric="rgb", alpha="yes")
    with pytest.raises(UserError) as caught:
        build(tmp_path / "a.tif", tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path}/a.tif has {dtype} bands without names (4: the last is called alpha but has too many values for "
        f"a mask); name them in their order, e.g. --band-names red,green,blue,nir for NAIP, or --band-names "
        "blue,green,red,nir for PlanetScope"
    )
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=200, band_names=("red", "green", "blue", "nir"))
    assert (built.num_tiles, built.metadata.statistics.nodata_share) == (1, 0)
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], pixels)


def test_an_alpha_band_with_soft_edges_is_a_mask(tmp_path):
    pixels = noise(4, 64, 64, "uint8")
    pixels[3] = 255
    pixels[3, :, 30:36] = np.arange(64)[:, None] * 3 + 1
    pixels[3, :, 36:] = 0
    save_raster(tmp_path / "a.tif", pixels, photometric="rgb", alpha="yes")
    built = build(tmp_path / "a.tif", tmp_path / "out", tile_size=32)
    assert (built.metadata.bands, built.num_tiles, built.skipped) == (list(RGB), 2, {"no data": 2})


def test_a_fourth_band_of_a_tiff_without_a_crs_is_not_dropped(tmp_path):
    pixels = save_raster(tmp_path / "a.tif", noise(4, 32, 32, "uint8"), crs=None, photometric="rgb", alpha="no")
    with pytest.raises(UserError, match=r"has uint8 bands without names \(4\); .* red,green,blue,nir"):
        build(tmp_path / "a.tif", tmp_path / "out")
    build(tmp_path / "a.tif", tmp_path / "out", band_names=("red", "green", "blue", "nir"))
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], pixels)


def test_sentinel1_polarisations_are_bands(tmp_path):
    """Level-1 files have no CRS."""
    vh = save_raster(tmp_path / "s1a-iw-grd-vh-20200101-002.tiff", noise(1, 32, 64, seed=1), crs=None)
    vv = save_raster(tmp_path / "s1a-iw-grd-vv-20200101-001.tiff", noise(1, 32, 64, seed=2), crs=None)
    built = build(tmp_path, tmp_path / "out", tile_size=32)
    assert (built.metadata.bands, built.metadata.sensor, built.num_tiles) == (["vv", "vh"], "sentinel1", 2)
    assert np.array_equal(rows_of(tmp_path / "out")[1]["image"], np.concatenate([vv, vh])[:, :, 32:])


@pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
def test_the_error_for_complex_pixels_recommends_their_magnitude(tmp_path, dtype):
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", count=1, height=32, width=32, dtype=dtype, crs=UTM,
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
    ):  # fmt: skip
        pass
    with pytest.raises(UserError) as caught:
        build(tmp_path / "a.tif", tmp_path / "out")
    assert str(caught.value).endswith(
        f"a.tif: is {dtype}; tiles can be uint8, uint16, int16, float32: "
        f"its magnitude can: gdal_calc.py -A IN --calc='abs(A)' --type=Float32 --outfile=OUT"
    )


@pytest.mark.parametrize(("name", "given"), [("thermal", "thermal"), ("depth", "depth"), ("pan", "pan")])
def test_one_band_without_a_name_may_hold_anything(tmp_path, name, given):
    save_raster(tmp_path / f"{name}.tif", noise(1, 32, 32))
    with pytest.raises(UserError) as caught:
        build(tmp_path / f"{name}.tif", tmp_path / "out")
    assert str(caught.value).endswith(
        "has uint16 bands without names (1); name them in their order, e.g. --band-names elevation for heights, or "
        "--band-names thermal for temperatures, or --band-names pan for a panchromatic image"
    )
    assert build(tmp_path / f"{name}.tif", tmp_path / "out", band_names=[given]).metadata.bands == [given]


@pytest.mark.parametrize(("count", "data"), [(7, "Landsat 5"), (8, "WorldView-2 and -3"), (12, "TreeSatAI")])
def test_each_known_order_of_bands_is_offered_and_works(tmp_path, count, data):
    save_raster(tmp_path / "a.tif", noise(count, 32, 32), photometric="minisblack")
    with pytest.raises(UserError) as caught:
        build(tmp_path / "a.tif", tmp_path / "out")
    offers = re.findall(r"--band-names (\S+) for ([^;]*?)(?:, or|$)", str(caught.value))
    assert any(data in named for _, named in offers)
    for number, (names, _) in enumerate(offers):
        built = build(tmp_path / "a.tif", tmp_path / f"out{number}", band_names=names.split(","))
        assert built.metadata.bands == names.split(",")
