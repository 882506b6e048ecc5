"""Which members of tars and which rows of shards are tiles: masks, splits and kinds, as in folders."""

from __future__ import annotations

import re
import subprocess

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.source_files import encode_image, error_message, random_array, tiff, tiles_of, write_tar
from support.tile_files import npy

COLOUR = random_array((12, 24, 24, 3), "uint8")
LABELS = np.random.default_rng(1).integers(0, 3, (12, 24, 24)).astype(np.uint8)
WIDE = random_array((12, 4, 24, 24), seed=2)
CLASS_COLOURS = np.array([[0, 0, 255], [255, 255, 0], [0, 255, 0], [255, 255, 255]], np.uint8)[LABELS]


def png(array):
    return encode_image(array)


def members(pattern, arrays=COLOUR, count=4, start=0):
    encode = tiff if pattern.endswith(".tif") else npy if pattern.endswith(".npy") else png
    return [(pattern.format(number), encode(arrays[number])) for number in range(start, start + count)]


def offers(message):
    """Return the values of data.source that a message offers, after running its commands."""
    for command in re.findall(r": (mkdir [^;]*?) and data\.source", message):
        subprocess.run(command, shell=True, check=True)
    return re.findall(r"data\.source='([^']*)' works", message)


@pytest.mark.parametrize(
    ("images", "masks", "arrays"),
    [
        ("images/{}.png", "masks/{}.png", LABELS),
        ("{}_sat.png", "{}_mask.png", LABELS),
        ("{}_sat.jpg.png", "{}_gt.png", CLASS_COLOURS),
        ("top/{}.png", "gts_x/{}.png", CLASS_COLOURS),
        ("rgb/{}.png", "cls/{}.png", LABELS),
        ("{}_rgb.png", "{}_colours.png", CLASS_COLOURS),
    ],
)
def test_masks_in_a_tar_are_left_out(tmp_path, capfd, images, masks, arrays):
    write_tar(tmp_path / "t" / "0.tar", members(images) + members(masks, arrays))
    write_tar(tmp_path / "t" / "1.tar", members(images, start=4) + members(masks, arrays, start=4))
    tiles = tiles_of(tmp_path / "t")
    assert len(tiles) == 8
    assert all(len(np.unique(tiles[index])) > 100 for index in range(8))
    assert "8 images with " in capfd.readouterr().err


@pytest.mark.parametrize("masks", [["{}.mask.png"], ["{}.seg.png"], ["{}.gt.png", "{}.labels.png"], ["{}.classes.png"]])
def test_columns_of_masks_in_a_tar_are_left_out(tmp_path, capfd, masks):
    write_tar(tmp_path / "t.tar", sum((members(mask, LABELS) for mask in masks), members("{}.sat.png")))
    assert tiles_of(tmp_path / "t.tar").image_column == "sat.png"
    printed = capfd.readouterr().err
    column = re.search(r"data\.image_column=(\S+) reads one", printed)[1]
    assert tiles_of(tmp_path / "t.tar", 1, image_column=column).image_column == column


@pytest.mark.parametrize(
    ("train", "test"),
    [("train/{}.png", "test/{}.png"), ("x/train2017/{}.png", "x/val2017/{}.png"), ("a_train_{}.png", "a_test_{}.png")],
)
def test_splits_in_a_tar_are_obeyed(tmp_path, train, test):
    write_tar(tmp_path / "t.tar", members(train) + members(test, count=2, start=4))
    word = "val" if "val" in test else "test"
    assert len(tiles_of(tmp_path / "t.tar", split="train")) == len(tiles_of(f"{tmp_path}/t.tar:train")) == 4
    assert len(tiles_of(tmp_path / "t.tar", split=word)) == 2
    message = error_message(tmp_path / "t.tar")
    assert f"holds several splits, train (4 images), {word} (2 images)" in message
    assert message.endswith("data.split=train works")
    assert "is not a split of" in error_message(tmp_path / "t.tar", split="eval")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("rgb/{}.png", COLOUR), ("sar/{}.png", COLOUR[..., 0])),
        (("s2/{}.npy", WIDE), ("s1/{}.npy", WIDE[:, :2])),
        (("{}_a.tif", WIDE), ("{}_b.tif", WIDE.astype(np.float32))),
        (("MUL/MUL_img{}.tif", WIDE), ("MUL-PanSharpen/MUL-PanSharpen_img{}.tif", WIDE)),
    ],
)
def test_kinds_in_tars_compete(tmp_path, first, second):
    """Within one tar they are to be unpacked; between tars a glob chooses."""
    write_tar(tmp_path / "one" / "t.tar", members(*first) + members(*second, count=2))
    message = error_message(tmp_path / "one", None)
    assert "holds 2 kinds of images, of which one can be read (6 files were looked at)" in message
    found = offers(message)
    assert [len(tiles_of(source, None, scaling="percentiles")) for source in found] == [4, 2]
    write_tar(tmp_path / "two" / "big-000.tar", members(*first))
    write_tar(tmp_path / "two" / "small-000.tar", members(*second, count=2))
    found = offers(error_message(tmp_path / "two", None))
    assert [len(tiles_of(source, None, scaling="percentiles")) for source in found] == [4, 2]


@pytest.mark.parametrize(
    "names", [("a_B02.tif", "a_B03.tif"), ("x_VV.tif", "x_VH.tif"), ("s/p_red.tif", "s/p_nir.tif")]
)
def test_files_of_one_band_in_a_tar_are_to_be_unpacked(tmp_path, names):
    write_tar(tmp_path / "t.tar", [(name, tiff(WIDE[0, :1])) for name in names])
    message = error_message(tmp_path / "t.tar", None)
    command, source = re.search(r"unpacked: (mkdir .*) and data\.source='(.*)'$", message).groups()
    subprocess.run(command, shell=True, check=True)
    assert len(tiles_of(source, 2, bands=[re.split(r"[_.]", name)[1] for name in names], scaling="percentiles")) == 1
    dotted = [(name.replace("_", "."), tiff(WIDE[0, :1])) for name in names]
    write_tar(tmp_path / "dots.tar", dotted)
    bands = [re.split(r"[_.]", name)[1] for name in names]
    assert len(tiles_of(tmp_path / "dots.tar", 2, bands=bands, scaling="percentiles")) == 1


def write_rows(path, files, named=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": raw, "path": name if named else None} for name, raw in files]
    type_of_rows = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(rows, type_of_rows)}), path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("images.parquet", COLOUR), ("masks.parquet", LABELS)),
        (("rgb.parquet", COLOUR), ("cls.parquet", LABELS)),
        (("rgb-0.parquet", COLOUR), ("colours-0.parquet", CLASS_COLOURS)),
        (("rgb.parquet", COLOUR), ("sar.parquet", COLOUR[..., 0])),
    ],
)
def test_kinds_in_parquet_shards_compete(tmp_path, first, second):
    for (name, arrays), count in ((first, 6), (second, 3)):
        write_rows(tmp_path / name, members("{}.png", arrays, count))
    message = error_message(tmp_path, None, streaming=True)
    assert "holds 2 kinds of images, of which one can be read (9 files were looked at)" in message
    assert [len(tiles_of(source, None, streaming=True)) for source in offers(message)] == [6, 3]


def test_rows_with_names_of_masks_are_refused(tmp_path):
    rows = members("images/{}.png") + members("masks/{}.png", LABELS)
    write_rows(tmp_path / "all.parquet", rows, named=True)
    assert "4 of 1 band of uint8 (masks or label maps), e.g. all.parquet/masks/0.png" in error_message(tmp_path)


@pytest.mark.parametrize("form", ["jpeg", "tiff", "png"])
def test_rows_of_every_format_are_asked(tmp_path, form):
    rows = [(f"images/{n}.x", encode_image(COLOUR[n], form)) for n in range(4)]
    rows += [(f"masks/{n}.x", encode_image(LABELS[n] * 100, form)) for n in range(4)]
    write_rows(tmp_path / "all.parquet", rows, named=True)
    message = error_message(tmp_path)
    assert "4 of 8-bit colour, e.g. all.parquet/images/0.x" in message
    assert "4 of 1 band of uint8 (masks or label maps), e.g. all.parquet/masks/0.x" in message


def test_grey_rows_among_colour_are_printed(tmp_path, capfd):
    write_rows(tmp_path / "all.parquet", members("{}.png") + members("{}.png", COLOUR[..., 0], 2))
    assert len(tiles_of(tmp_path, streaming=True)) == 6
    assert "2 of 6 sampled images are grey, and are read as colour" in capfd.readouterr().err


@pytest.mark.parametrize(("field", "mask"), [("image", "mask"), ("s2", "label_map"), ("picture", "classes")])
def test_a_column_of_masks_in_parquet_is_left_out(tmp_path, capfd, field, mask):
    columns = {field: [raw for _, raw in members("{}.png")], mask: [raw for _, raw in members("{}.png", LABELS)]}
    rows = {name: [{"bytes": raw, "path": None} for raw in values] for name, values in columns.items()}
    features = datasets.Features({name: datasets.Image() for name in rows})
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "t.parquet")
    assert tiles_of(tmp_path, streaming=True).image_column == field
    assert f"columns of masks or label maps are left out: {mask}; data.image_column={mask} reads one" in (
        capfd.readouterr().err
    )


def test_a_copied_shard_is_left_out(tmp_path, capfd):
    write_tar(tmp_path / "tars" / "a.tar", members("{}.png"))
    write_tar(tmp_path / "tars" / "a (1).tar", members("{}.png"))
    write_tar(tmp_path / "tars" / "b.tar", members("{}.png", start=4))
    assert len(tiles_of(tmp_path / "tars")) == 8
    assert "a (1).tar is a copy of a.tar and is left out" in capfd.readouterr().err
    write_rows(tmp_path / "rows" / "x.parquet", members("{}.png"))
    write_rows(tmp_path / "rows" / "x copy.parquet", members("{}.png"))
    assert len(tiles_of(tmp_path / "rows", streaming=True)) == 4
