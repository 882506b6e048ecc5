"""Files of a folder that are no tiles, or that change what tiles mean: each is printed, left out or refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from support.source_files import encode_image, error_message, random_array, tiff, tiles_of, write_file

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
COLOUR = random_array((8, 24, 24, 3), "uint8")
LABELS = np.random.default_rng(1).integers(0, 3, (8, 24, 24)).astype(np.uint8)
WIDE = random_array((8, 4, 24, 24), seed=2)
BANDS = ("B2", "B3", "B4", "B8")


def write_images(folder, pattern="{}.png", arrays=COLOUR, count=4, start=0, **profile):
    for number in range(start, start + count):
        raw = tiff(arrays[number], **profile) if pattern.endswith(".tif") else encode_image(arrays[number])
        write_file(folder / pattern.format(number), raw)


@pytest.mark.parametrize(
    "preview", ["scene{}-ql.png", "scene{}_thumb.png", "quicklooks/scene{}_browse.png", "scene{}_preview.png"]
)
def test_quick_looks_are_left_out(tmp_path, capfd, preview):
    write_images(tmp_path, "scene{}.png")
    write_images(tmp_path, preview, COLOUR[:, ::2, ::2])
    tiles = tiles_of(tmp_path)
    assert {tuple(tiles[index].shape) for index in range(len(tiles))} == {(3, 24, 24)}
    printed = capfd.readouterr().err
    assert "4 images with the names of quick-looks are left out" in printed
    assert len(tiles_of(re.search(r"data\.source='([^']*)' reads such", printed)[1])) == 4


def test_a_source_of_masks_only_is_told(tmp_path, capfd):
    write_images(tmp_path, "masks/{}.png", LABELS)
    assert len(tiles_of(tmp_path, 1)) == 4
    assert "its images have few values, as masks and label maps do, e.g. masks/0.png" in capfd.readouterr().err


@pytest.mark.parametrize("maps", ["gts_x/{}.png", "{}_instance_color.png", "{}_colors.png", "x/y/{}.png"])
def test_label_maps_in_colours_are_left_out(tmp_path, capfd, maps):
    palette = np.random.default_rng(3).integers(0, 256, (3, 3)).astype(np.uint8)
    write_images(tmp_path, "{}.png")
    write_images(tmp_path, maps, palette[LABELS])
    tiles = tiles_of(tmp_path)
    assert len(tiles) == 4
    assert min(len(np.unique(tiles[index])) for index in range(4)) > 100
    assert "4 images with " in capfd.readouterr().err


def test_flat_pictures_among_others_are_tiles(tmp_path):
    """Water in two tones, black and white tiles are imagery."""
    generator = np.random.default_rng(0)
    write_images(tmp_path, "forest/{}.png")
    write_images(tmp_path, "sea/{}.png", generator.integers(60, 64, (8, 24, 24, 1)).repeat(3, 3).astype(np.uint8))
    write_images(tmp_path, "night/{}.png", np.zeros((8, 24, 24, 3), np.uint8))
    write_images(tmp_path, "snow/{}.png", np.full((8, 24, 24, 3), 255, np.uint8))
    assert len(tiles_of(tmp_path)) == 16


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (BANDS, BANDS[::-1]),
        (BANDS, ()),
        (BANDS, ("B2", "B3", "B4", "B8A")),
        (("red", "green", "blue", "nir"), ("nir", "red", "green", "blue")),
    ],
)
def test_bands_in_another_order_compete(tmp_path, first, second):
    write_images(tmp_path, "a/{}.tif", WIDE, 6, descriptions=first)
    write_images(tmp_path, "b/{}.tif", WIDE, 1, descriptions=second)
    message = error_message(tmp_path, None)
    assert f"6 of 4 bands [{', '.join(first)}] of uint16" in message
    names = f"[{', '.join(second)}] " if second else ""
    assert f"1 of 4 bands {names}of uint16, e.g. b/0.tif" in message
    sources = re.findall(r"data\.source='([^']*)' works", message)
    assert [len(tiles_of(source, None, scaling="percentiles")) for source in sources] == [6, 1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("MUL/MUL_AOI_2_img{}.tif", "MUL-PanSharpen/MUL-PanSharpen_AOI_2_img{}.tif"),
        ("images/m_{}.tif", "images_masked/m_{}.tif"),
        ("{}_L1C.tif", "{}_L2A.tif"),
    ],
)
def test_two_products_compete(tmp_path, capfd, first, second):
    write_images(tmp_path, first, WIDE)
    write_images(tmp_path, second, WIDE, 2)
    assert len(tiles_of(tmp_path / "**" / "*.tif", None)) == 6
    assert "products of the same scenes are read together: " in capfd.readouterr().err
    message = error_message(tmp_path, None)
    sources = re.findall(r"data\.source='([^']*)' works", message)
    assert [len(tiles_of(source, None)) for source in sources] == [4, 2]


@pytest.mark.parametrize(
    ("first", "second"),
    [("red/x{}.tif", "nir/x{}.tif"), ("train_red/red_p{}.tif", "train_nir/nir_p{}.tif"), ("B04/{}.tif", "B08/{}.tif")],
)
def test_folders_of_one_band_each_compete(tmp_path, first, second):
    write_images(tmp_path, first, WIDE[:, :1])
    write_images(tmp_path, second, WIDE[:, 1:2])
    message = error_message(tmp_path, None)
    sources = re.findall(r"data\.source='([^']*)' works", message)
    assert [len(tiles_of(source, None, scaling="percentiles")) for source in sources] == [4, 4]


@pytest.mark.parametrize(("name", "form"), [("a.bmp", "BMP"), ("a.webp", "WEBP"), ("x/a.gif", "GIF")])
def test_other_formats_are_printed(tmp_path, capfd, name, form):
    write_images(tmp_path, "{}.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.fromarray(COLOUR[5]).save(tmp_path / name, form)
    assert len(tiles_of(tmp_path)) == 4
    printed = capfd.readouterr().err
    assert f"1 file of formats that are not read are left out, e.g. {name}; python -c" in printed
    search_path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = re.search(r"; (python -c .*) makes a TIFF of it", printed)[1]
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PATH": search_path})
    assert len(tiles_of(tmp_path)) == 5


@pytest.mark.parametrize(
    "sidecar",
    [
        ("0.tif.msk", None),
        (
            "1.tif.aux.xml",
            "<PAMDataset><PAMRasterBand band='1'><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>",
        ),
        ("1.tif.aux.xml", "<PAMDataset><PAMRasterBand band='1'><Scale>0.1</Scale></PAMRasterBand></PAMDataset>"),
    ],
)
def test_files_that_change_what_images_mean_are_refused(tmp_path, sidecar):
    name, text = sidecar
    write_images(tmp_path, "{}.tif", WIDE)
    if text:
        (tmp_path / name).write_text(text)
    else:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(tmp_path / "0.tif", "r+") as image:
            image.write_mask(np.eye(24, dtype=bool))
    assert f"holds {name}, which says where its image holds no data" in error_message(tmp_path)


def test_statistics_beside_images_change_nothing(tmp_path):
    write_images(tmp_path, "{}.png")
    (tmp_path / "0.png.aux.xml").write_text(
        "<PAMDataset><Metadata><MDI key='STATISTICS_MEAN'>3</MDI></Metadata></PAMDataset>"
    )
    (tmp_path / "gone.tif.msk").write_text("of no image")
    assert len(tiles_of(tmp_path)) == 4


def test_further_pages_are_printed(tmp_path, capfd):
    write_images(tmp_path, "{}.png")
    pages = [Image.fromarray(COLOUR[number]) for number in (5, 6, 7)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    tiles = tiles_of(tmp_path)
    assert len(tiles) == 5
    assert np.array_equal(tiles[4], COLOUR[5].transpose(2, 0, 1))
    printed = capfd.readouterr().err
    assert "only the first page of 1 of 5 sampled files is read" in printed
    assert "pages.tif (3)" in printed


@pytest.mark.parametrize("copy", ["a - Copy/{}.png", "a/{} (1).png", "b/other{}.png"])
def test_copies_of_images_are_printed(tmp_path, capfd, copy):
    write_images(tmp_path, "a/{}.png")
    write_images(tmp_path, copy)
    assert len(tiles_of(tmp_path)) == 8
    assert "4 of 8 images are copies of others, byte for byte, e.g. " in capfd.readouterr().err


def test_a_fourth_band_that_is_called_alpha_competes_with_colour(tmp_path):
    """GDAL calls the near infrared of four 8-bit bands alpha; a mask in its place makes no other kind."""
    infrared = random_array((8, 4, 24, 24), "uint8")
    write_images(tmp_path / "two", "rgb/{}.tif", infrared[:, :3])
    write_images(tmp_path / "two", "nir_rgb/{}.tif", infrared, photometric="RGB", alpha="YES")
    sources = re.findall(r"data\.source='([^']*)' works", error_message(tmp_path / "two", None))
    assert [tiles_of(source, None, scaling="percentiles")[0].shape[0] for source in sources] == [4, 3]
    infrared[:, 3] = 255
    write_images(tmp_path / "one", "rgb/{}.tif", infrared[:, :3])
    write_images(tmp_path / "one", "rgba/x{}.tif", infrared, photometric="RGB", alpha="YES")
    assert len(tiles_of(tmp_path / "one")) == 8


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train_set/{}.png", "test_set/{}.png"),
        ("train2017/{}.png", "val2017/{}.png"),
        ("my_train_data/x/{}.png", "my_test_data/x/{}.png"),
        ("a_train_{}.png", "a_test_{}.png"),
        ("TrainImages/{}.png", "TestImages/{}.png"),
    ],
)
def test_splits_inside_names(tmp_path, train, test):
    write_images(tmp_path, train)
    write_images(tmp_path, test, count=2, start=4)
    word = "val" if "val" in test else "test"
    message = error_message(tmp_path)
    assert f"holds several splits, train (4 images), {word} (2 images)" in message
    assert len(tiles_of(tmp_path, split="train")) == len(tiles_of(f"{tmp_path}:train")) == 4
    assert len(tiles_of(tmp_path, split=word)) == 2
    every = re.search(r"data\.source='([^']*)' for all", message)[1]
    assert len(tiles_of(every)) == 6


@pytest.mark.parametrize("names", [("train_station", "test_track"), ("valley", "plain"), ("a_train", "b_bus")])
def test_classes_with_words_of_splits_are_no_splits(tmp_path, names):
    for name in names:
        write_images(tmp_path, f"{name}/{{}}.png")
    assert len(tiles_of(tmp_path)) == 8
