"""Folders of image files: one file per tile, or one per band of a tile."""

import numpy as np
import pytest
from support.source_files import encode_image, error_message, random_array, resize_layer, tiff, tiles_of, write_file
from support.tile_files import SENTINEL2, npy

from moco_accel.images.headers import DamagedTile


def test_images_in_class_folders(tmp_path):
    arrays = random_array((4, 20, 20, 3), "uint8")
    write_file(tmp_path / "sea" / "b.png", encode_image(arrays[0]))
    write_file(tmp_path / "sea" / "deep" / "a.PNG", encode_image(arrays[1]))
    write_file(tmp_path / "land" / "c.jpg", encode_image(arrays[2], "jpeg", quality=95))
    write_file(tmp_path / "land" / "notes.txt", b"words")
    write_file(tmp_path / "land" / ".hidden.png", b"")
    tiles = tiles_of(tmp_path)
    assert tiles.column("file") == ["land/c.jpg", "sea/b.png", "sea/deep/a.PNG"]
    assert tiles.labels("label") == ([0, 1, 1], ["land", "sea"])
    assert (tiles.bands, tiles.image_column, tiles.shard_sizes) == (["red", "green", "blue"], "image", [3])
    assert np.array_equal(tiles[1].numpy(), arrays[0].transpose(2, 0, 1))
    assert np.array_equal(tiles[2].numpy(), arrays[1].transpose(2, 0, 1))
    assert tiles_of(tmp_path / "*" / "*.png").labels("label") == ([0], ["sea"])
    write_file(tmp_path / "top.png", encode_image(arrays[3]))
    assert "label" not in tiles_of(tmp_path).column_names
    (tmp_path / "sea" / "b.png").write_bytes(b"no image")
    with pytest.raises(DamagedTile, match=r"^is not JPEG.*: .*sea/b.png$"):
        tiles[1]
    (tmp_path / "sea" / "b.png").unlink()
    with pytest.raises(DamagedTile, match=r"^is missing: .*sea/b.png$"):
        tiles[1]


def test_geotiffs_with_many_bands(tmp_path):
    arrays = random_array((5, 13, 16, 16))
    for index, array in enumerate(arrays):
        write_file(tmp_path / "named" / f"{index}.tif", tiff(array, [f"B{band[1:]:0>2}" for band in SENTINEL2]))
        write_file(tmp_path / "unnamed" / f"{index}.tif", tiff(array))
    named = tiles_of(tmp_path / "named", 3, bands=["B4", "B3", "B2"], scaling="reflectance")
    assert np.array_equal(named[2].numpy(), arrays[2][[3, 2, 1]])
    assert tiles_of(tmp_path / "named", 13, scaling="reflectance").bands == SENTINEL2
    assert "have 13 bands, whose names are not stored" in error_message(tmp_path / "unnamed", 13, scaling="reflectance")
    unnamed = tiles_of(tmp_path / "unnamed", 13, bands=SENTINEL2, scaling="reflectance")
    assert np.array_equal(unnamed[1].numpy(), arrays[1])
    write_file(tmp_path / "unnamed" / "3.tif", tiff(arrays[0].astype(np.int16)))
    write_file(tmp_path / "unnamed" / "4.tif", tiff(arrays[0][:12]))
    for index, reason in ((3, "is int16, not uint16"), (4, "has 12 bands, not 13")):
        with pytest.raises(DamagedTile, match=rf"^{reason}: .*{index}.tif$"):
            unnamed[index]


@pytest.mark.parametrize("layout", ["{tile}/{band}.tif", "{tile}_{band}.tif", "land/{tile}/{tile}_{band}_10m.tif"])
def test_one_tiff_per_band(tmp_path, layout):
    arrays = random_array((3, 16, 16))
    coarse = random_array((3, 8, 8), seed=1)
    for tile in range(3):
        write_file(tmp_path / layout.format(tile=f"t{tile}", band="B02"), tiff(arrays[tile : tile + 1]))
        write_file(tmp_path / layout.format(tile=f"t{tile}", band="b8a"), tiff(coarse[tile : tile + 1]))
    write_file(tmp_path / layout.format(tile="t0", band="B12"), tiff(coarse[:1]))
    tiles = tiles_of(tmp_path, 2, bands=["B8A", "B2"], scaling="reflectance")
    assert (len(tiles), tiles.bands, tiles.image_column) == (3, ["B8A", "B2"], None)
    for tile in range(3):
        assert np.array_equal(tiles[tile].numpy(), np.stack([resize_layer(coarse[tile], 16), arrays[tile]]))
    assert ("label" in tiles.column_names) == layout.startswith("land")
    assert "has a column for each band; data.bands=[B2, B8A, B12]" in error_message(tmp_path, 2)
    with pytest.raises(DamagedTile, match=r"^B12 is missing: .*t1"):
        tiles_of(tmp_path, 1, bands=["B12"], scaling="reflectance")[1]
    write_file(tmp_path / "mask.tif", tiff(coarse[:1]))
    assert len(tiles_of(tmp_path, 1, bands=["B2"], scaling="reflectance")) == 3
    write_file(tmp_path / "other.tif", tiff(coarse[:1]))
    message = error_message(tmp_path, 2, bands=["B2"])
    assert f"with other.tif, which holds no single band; data.source='{tmp_path}/**/*B[0-9]*.tif' leaves" in message
    assert len(tiles_of(tmp_path / "**" / "*[bB][0-9]*.tif", 2, bands=["B8A", "B2"], scaling="reflectance")) == 3


def test_npy_files(tmp_path):
    arrays = random_array((2, 16, 18, 5)).astype(np.float32)
    write_file(tmp_path / "0.npy", npy(arrays[0]))
    write_file(tmp_path / "1.npy", npy(arrays[1].transpose(2, 0, 1)))
    names = ["v", "w", "x", "y", "z"]
    tiles = tiles_of(tmp_path, 5, bands=names, scaling="percentiles")
    assert tiles.bands == names
    for index in range(2):
        assert np.array_equal(tiles[index].numpy(), arrays[index].transpose(2, 0, 1))


@pytest.mark.parametrize("bands_last", [False, True])
def test_npy_with_more_bands_than_pixels_a_side(tmp_path, bands_last):
    """The number of bands in the recipe shows which axis holds them, not the shortest axis."""
    arrays = random_array((2, 13, 9, 10))
    for index, array in enumerate(arrays):
        write_file(tmp_path / f"{index}.npy", npy(array.transpose(1, 2, 0) if bands_last else array))
    tiles = tiles_of(tmp_path, 13, bands=SENTINEL2, scaling="reflectance")
    for index in range(2):
        assert np.array_equal(tiles[index].numpy(), arrays[index])


def test_first_picture_may_be_grey(tmp_path):
    """A source is in colour if one of its first tiles is; a source of grey tiles still needs encoder.bands=1."""
    arrays = random_array((4, 20, 20, 3), "uint8")
    for index in (0, 1, 2, 3):
        grey = encode_image(arrays[index, :, :, 0])
        write_file(tmp_path / "mixed" / f"{index}.png", grey if index < 2 else encode_image(arrays[index]))
        write_file(tmp_path / "grey" / f"{index}.png", grey)
    mixed = tiles_of(tmp_path / "mixed")
    assert mixed.bands == ["red", "green", "blue"]
    assert np.array_equal(mixed[0].numpy(), np.stack([arrays[0, :, :, 0]] * 3))
    assert np.array_equal(mixed[3].numpy(), arrays[3].transpose(2, 0, 1))
    grey = tiles_of(tmp_path / "grey", 1)
    assert (grey.bands, grey[3].shape) == (["grey"], (1, 20, 20))
    assert "have 1 [grey]" in error_message(tmp_path / "grey")
