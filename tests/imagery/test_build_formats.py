"""Formats: what is read through GDAL, and a command that works for what is not; many bands; known orders of bands."""

import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image, ImageCms
from support.builds import build, run_moco_data, save_picture
from support.geo_files import UTM, facts_of, noise, rows_of, save_raster

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import SENTINEL2
from moco_accel.recipe.data_sections import Data
from moco_accel.tiles.tiles import open_tiles

NAMES = ["B4", "B8"]
BIN = Path(sys.executable).parent


def save_as(path, driver, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    where = {"crs": UTM, "transform": rasterio.Affine(10, 0, 0, 0, -10, 0)}
    with rasterio.open(
        path, "w", driver=driver, count=len(pixels), height=32, width=32, dtype=pixels.dtype, **where
    ) as file:
        file.write(pixels)


def follow(message):
    """Run the command that a message names, up to the verb."""
    command = re.search(r"; ((?:mkdir|python|rio) .*?)(?: makes a | unpacks it)", message)[1]
    for step in command.split(" && "):
        words = shlex.split(step)
        program = {"python": sys.executable, "rio": str(BIN / "rio")}.get(words[0], words[0])
        subprocess.run([program, *words[1:]], check=True)


@pytest.mark.parametrize(("name", "driver"), [("a.img", "HFA"), ("a.img", "ENVI"), ("a.dat", "ENVI"), ("a.bmp", "BMP")])
def test_rasters_of_other_formats_are_refused_with_a_command_that_works(tmp_path, name, driver):
    pixels = noise(3, 32, 32, "uint8")
    save_as(tmp_path / "s" / name, driver, pixels)
    with pytest.raises(UserError, match=f"holds no images, but 1 files of formats that are not read, e.g. {name}") as e:
        build(tmp_path / "s", tmp_path / "out")
    follow(str(e.value))
    built = build(tmp_path / "s", tmp_path / "out", band_names=("red", "green", "blue"))
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], pixels)
    (note,) = [note for note in built.notes if "formats" in note]
    program = "python -c" if driver == "BMP" else "rio convert"
    assert note.startswith(f"left out, because their formats are not read: 1 file, e.g. {name}; {program} ")


def test_a_virtual_raster_is_left_out_beside_its_sources(tmp_path):
    """Its tiles would be there twice."""
    pixels = save_raster(tmp_path / "s/a.tif", noise(2, 32, 32), names=NAMES)
    rasterio.shutil.copy(tmp_path / "s/a.tif", tmp_path / "s/a.vrt", driver="VRT")
    built = build(tmp_path / "s", tmp_path / "out")
    assert (built.num_tiles, "e.g. a.vrt; rio convert" in "".join(built.notes)) == (1, True)
    (tmp_path / "alone").mkdir()
    rasterio.shutil.copy(tmp_path / "s/a.tif", tmp_path / "alone/b.vrt", driver="VRT")
    with pytest.raises(UserError, match=r"e\.g\. b\.vrt; rio convert ") as caught:
        build(tmp_path / "alone", tmp_path / "none")
    follow(str(caught.value))
    build(tmp_path / "alone", tmp_path / "converted", band_names=NAMES)  # rio drops descriptions
    assert np.array_equal(rows_of(tmp_path / "converted")[0]["image"], pixels)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_an_archive_of_a_landsat_product_is_refused_with_a_command_that_works(tmp_path, suffix):
    stem = "LC08_L2SP_014034_20200101_20200113_02_T1"
    scene = [save_raster(tmp_path / f"x/{stem}_SR_B{n}.TIF", noise(1, 32, 32, seed=n)) for n in (3, 4)]
    (tmp_path / "my data").mkdir()
    archive = tmp_path / f"my data/{stem}{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in (tmp_path / "x").iterdir():
                file.write(path, path.name)
    else:
        with tarfile.open(archive, "w:gz" if suffix.endswith("gz") else "w") as file:
            for path in (tmp_path / "x").iterdir():
                file.add(path, path.name)
    for source in (archive, archive.parent):
        with pytest.raises(UserError, match=r"not read.* unpacks it") as caught:
            build(source, tmp_path / "none")
    follow(str(caught.value))
    built = build(tmp_path / "my data", tmp_path / "out")
    assert (built.metadata.bands, built.metadata.sensor) == (["B3", "B4"], "landsat8")
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], np.concatenate(scene))


@pytest.mark.parametrize("name", ["MOD13.hdf", "era5.nc", "PRISMA.he5"])
def test_grids_of_variables_are_refused_with_the_commands(tmp_path, name):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(
        UserError, match=rf"e\.g\. {name}; gdalinfo .* lists its variables, and gdal_translate '\w+:\"/"
    ):
        build(tmp_path / "s", tmp_path / "out")


@pytest.mark.parametrize("compress", ["LERC", "LERC_ZSTD", "WEBP", "ZSTD", "LZMA"])
def test_compressions_of_geotiff_are_read(tmp_path, compress):
    options = {"webp_lossless": True} if compress == "WEBP" else {}
    pixels = save_raster(tmp_path / "a.tif", noise(3, 32, 32, "uint8"), compress=compress, **options)
    build(tmp_path / "a.tif", tmp_path / "out")
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], pixels)


def test_transparent_pixels_of_a_png_are_no_data_as_those_of_a_tiff(tmp_path):
    pixels = noise(4, 32, 64, "uint8", low=1)
    pixels[3] = 255
    pixels[3, :, 32:] = 0
    save_raster(tmp_path / "a.tif", pixels, photometric="rgb", alpha="yes")
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        built = build(tmp_path / name, tmp_path / f"out_{name}", tile_size=32)
        assert (built.num_tiles, built.skipped) == (1, {"no data": 1})
        assert np.array_equal(rows_of(tmp_path / f"out_{name}")[0]["image"], pixels[:3, :, :32])


def test_224_bands_are_named_by_a_range_and_shortened_in_messages(tmp_path):
    pixels = save_raster(tmp_path / "enmap.tif", noise(224, 16, 16, "int16"), photometric="minisblack")
    command = ("build", tmp_path / "enmap.tif", tmp_path / "out", "--tile-size", 16)
    refused = run_moco_data(*command)
    text = " ".join(refused.stderr.split())
    assert (refused.exit_code, text.endswith("(224); name them in their order, e.g. --band-names B1..B224")) == (
        2,
        True,
    )
    done = run_moco_data(*command, "--band-names", "B1..B224")
    assert done.exit_code == 0
    assert "[B1, B2, … B224 (224)]" in " ".join(done.stderr.split())
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], pixels)
    with pytest.raises(UserError, match=r"has \[B1, B2, … B224 \(224\)\]: B300 is not there"):
        build(tmp_path / "enmap.tif", tmp_path / "x", bands=["B300"], band_names=[f"B{n}" for n in range(1, 225)])


def test_the_orders_of_13_bands_are_offered_and_not_assumed(tmp_path):
    save_raster(tmp_path / "a.tif", noise(13, 32, 32), photometric="minisblack")
    with pytest.raises(UserError) as caught:
        build(tmp_path / "a.tif", tmp_path / "out")
    message = str(caught.value)
    assert "B13" not in message
    assert f"--band-names {','.join(SENTINEL2)} for Sentinel-2 level 1C" in message
    assert "--band-names B1,B2,B3,B4,B5,B6,B7,B8,B9,B10,B11,B12,B8A for EuroSAT-MSI" in message


def test_the_two_gains_of_landsat_7_are_two_bands(tmp_path):
    stem = "LE07_L1TP_014034_20000101_20200113_02_T1"
    bands = {
        name: save_raster(tmp_path / f"s/{stem}_{name}.TIF", noise(1, 32, 32, "uint8", seed=seed))
        for seed, name in enumerate(("B5", "B6_VCID_1", "B6_VCID_2", "B7"))
    }
    built = build(tmp_path / "s", tmp_path / "out", tile_size=32)
    assert built.metadata.bands == list(bands)
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], np.concatenate(list(bands.values())))


def test_a_text_file_is_no_image(tmp_path):
    save_picture(tmp_path / "s/a.png", 32, 32)
    (tmp_path / "s/a.dat").write_text("no raster: there is no header")
    assert build(tmp_path / "s", tmp_path / "out", tile_size=32).notes == []


def in_place_and_built(folder, out, **options):
    """Return the only tile of a folder as training reads it, and as the build stores it."""
    tiles = open_tiles(str(folder), Data(), None)
    build(folder, out, max_nodata=1, **options)
    (row,) = rows_of(out)
    return tiles[0].numpy(), row["image"]


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("crs", [None, "EPSG:32618"])
def test_cmyk_becomes_rgb_and_black_is_no_alpha(tmp_path, capfd, compression, crs):
    inks = np.random.default_rng(0).integers(0, 256, (4, 32, 32)).astype(np.uint8)
    inks[3, :8] = 0  # no black: as alpha it would hide them
    (tmp_path / "s").mkdir()
    if crs:
        save_raster(tmp_path / "s/a.tif", inks, crs, photometric="CMYK")
    else:
        Image.fromarray(inks.transpose(1, 2, 0), "CMYK").save(tmp_path / "s/a.tif", compression=compression)
    expected = (255.0 - inks[:3]) * (255.0 - inks[3]) / 255
    for tile in in_place_and_built(tmp_path / "s", tmp_path / "out"):
        assert tile.shape == (3, 32, 32)
        assert np.abs(tile - expected).max() <= 1
    assert facts_of(tmp_path / "out")["bands"] == ["red", "green", "blue"]
    assert "alpha" not in capfd.readouterr().err


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_lab_becomes_rgb(tmp_path, compression):
    colours = np.zeros((32, 32, 3), np.uint8)
    colours[:16, :, 0], colours[16:, :, 2] = 200, 220
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(Image.fromarray(colours), ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    (tmp_path / "s").mkdir()
    lab.save(tmp_path / "s/a.tif", compression=compression)
    for tile in in_place_and_built(tmp_path / "s", tmp_path / "out"):
        assert tile.shape == (3, 32, 32)
        assert (tile[:, 0, 0].argmax(), tile[:, 31, 0].argmax()) == (0, 2)


@pytest.mark.parametrize(
    ("photometric", "dtype", "bands", "what"),
    [
        ("CMYK", "uint16", 4, "CMYK of 16"),
        ("CIELAB", "uint16", 3, "CIE Lab of 16"),
        ("ICCLAB", "uint8", 3, "ICC Lab of 8"),
        ("ITULAB", "uint8", 3, "ITU Lab of 8"),
    ],
)
def test_colours_that_are_not_converted_are_refused(tmp_path, photometric, dtype, bands, what):
    """Their numbers would pass for bands of an image."""
    save_raster(tmp_path / "s/a.tif", noise(bands, 32, 32, dtype), photometric=photometric)
    reason = f"stores {what} bits; CMYK and CIE Lab of 8 bits are read, and RGB of any type"
    for read in (
        lambda: open_tiles(str(tmp_path / "s"), Data(), None),
        lambda: build(tmp_path / "s", tmp_path / "out"),
    ):
        with pytest.raises(UserError, match=reason):
            read()
