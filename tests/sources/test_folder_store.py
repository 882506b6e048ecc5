"""Folders of image files: one file per tile, or one per band of a tile."""

import numpy as np
import pytest
from support.source_files import encode_image, error_message, random_array, resize_layer, tiff, tiles_of, write_file
from support.tile_files import SENTINEL2, npy

from moco_accel.common.errors import UserError
from moco_accel.images.decoding import decode_raster
from moco_accel.images.headers import DamagedTile
from moco_accel.sources.base import Source, checksum
from moco_accel.sources.folder_store import FolderStore


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
    assert "with 1 image of no single band, e.g. other.tif; data.source='" in message
    offered = message.split("data.source='")[-1].split("'")[0]
    assert len(tiles_of(offered, 2, bands=["B8A", "B2"], scaling="reflectance")) == 3
    assert len(tiles_of(tmp_path / "**" / "*[bB][0-9]*.tif", 2, bands=["B8A", "B2"], scaling="reflectance")) == 3


def write_bands(root, names, dtype="uint16"):
    """Write one band of random pixels for each name; return them by name."""
    pixels = {name: random_array((1, 16, 16), dtype, seed) for seed, name in enumerate(names)}
    for name, array in pixels.items():
        write_file(root / name, tiff(array))
    return pixels


def store_of(root):
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*"))
    return FolderStore(root, names, Source(str(root), "data.source"))


@pytest.mark.parametrize(
    ("names", "bands"),
    [
        (["{}/{}_VV.tif", "{}/{}_VH.tif"], ["vv", "vh"]),
        (["s1a-iw-grd-vv-{}-0{}-001.tiff", "s1a-iw-grd-vh-{}-0{}-002.tiff"], ["vv", "vh"]),
        (["{}-{}_HH.TIF", "{}-{}_HV.TIF"], ["hh", "hv"]),
        (["{}/{}_red.tif", "{}/{}_nir.tif", "{}/{}_red_edge.tif"], ["red", "rededge", "nir"]),
        (["{}/x{}/blue.tif", "{}/x{}/nir08.tif", "{}/x{}/swir16.tif"], ["blue", "nir08", "swir16"]),
        (["LC08_{}_{}_T1_SR_B4.TIF", "LC08_{}_{}_T1_SR_B7.TIF", "LC08_{}_{}_T1_ST_B10.TIF"], ["B4", "B7", "B10"]),
        (
            ["LE07_{}_{}_B3.TIF", "LE07_{}_{}_B6_VCID_1.TIF", "LE07_{}_{}_B6_VCID_2.TIF"],
            ["B3", "B6_VCID_1", "B6_VCID_2"],
        ),
        (["LT05_{}_{}_sr_band3.tif", "LT05_{}_{}_sr_band4.tif"], ["B3", "B4"]),
        (["{}/{}_B4.tif", "{}/{}_VV.tif", "{}/{}_thermal.tif"], ["vv", "B4", "thermal"]),
    ],
)
def test_files_of_bands_are_columns_of_one_tile(tmp_path, names, bands):
    pixels = write_bands(tmp_path, [name.format(tile, tile) for tile in range(3) for name in names])
    store = store_of(tmp_path)
    assert (len(store), list(store.features)[: len(bands)]) == (3, bands)
    stored = [array.tobytes() for array in pixels.values()]
    for tile in range(3):
        read = [decode_raster(raw).numpy().tobytes() for raw in store.values(bands, tile)]
        assert sorted(read) == sorted(stored[tile * len(bands) : (tile + 1) * len(bands)])
    assert len(set(store.column("file"))) == len({store.location(tile) for tile in range(3)}) == 3
    assert len(store.files()) == len(pixels)


def test_polarisations_are_read_as_one_tile(tmp_path):
    pixels = write_bands(tmp_path, [f"p{tile}/p{tile}_{band}.tif" for tile in range(2) for band in ("VV", "VH")])
    tiles = tiles_of(tmp_path, 2, bands=["VV", "VH"], scaling="percentiles")
    assert tiles.bands == ["vv", "vh"]
    for tile in range(2):
        expected = np.concatenate([pixels[f"p{tile}/p{tile}_{band}.tif"] for band in ("VV", "VH")])
        assert np.array_equal(tiles[tile].numpy(), expected)


@pytest.mark.parametrize("names", [["a_red.tif", "a_green.tif"], ["a_B1.tif", "a_B2.tif"], ["a_vv.tif", "a_vh.tif"]])
def test_files_of_several_bands_are_tiles_whatever_their_names(tmp_path, names):
    arrays = random_array((2, 3, 16, 16), "uint8")
    for name, array in zip(names, arrays, strict=True):
        write_file(tmp_path / name, tiff(array))
    tiles = tiles_of(tmp_path)
    assert (len(tiles), tiles.bands) == (2, ["red", "green", "blue"])


def test_a_word_alone_is_no_band(tmp_path):
    write_bands(tmp_path, [f"{tile}_{word}.tif" for tile, word in enumerate(("red", "blue", "red", "pan"))])
    assert (len(store := store_of(tmp_path)), list(store.features)) == (4, ["image", "file"])
    write_bands(tmp_path, ["0_nir.tif"])
    with pytest.raises(UserError, match=r"such as 0_nir.tif with 2 images of no single band, e.g. 1_blue.tif; "):
        store_of(tmp_path)


@pytest.mark.parametrize("word", ["CLD", "SCL_20m", "QA_PIXEL", "TCI", "SR_QA_AEROSOL"])
def test_files_beside_bands_are_left_out_with_a_line(tmp_path, word, capfd):
    bands = [f"{tile}_{band}_10m.tif" for tile in range(2) for band in ("B4", "B8")]
    write_bands(tmp_path, bands)
    write_bands(tmp_path, [f"{tile}_{word}.tif" for tile in range(2)], "uint8")
    store = store_of(tmp_path)
    assert [path.name for path in store.files()] == bands
    assert list(store.features) == ["B4", "B8", "file"]
    expected = f": 2 images beside band files, which are no bands, are left out, e.g. 0_{word}.tif\n"
    assert capfd.readouterr().err.endswith(expected)
    assert len(tiles_of(tmp_path, bands=["B4", "B8"], scaling="percentiles", num_bands=2)) == 2


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["x_B02_10m.tif", "x_B02_20m.tif", "x_B8A_20m.tif"], [0, 2]),
        (["x_B02_10m.tif", "x_B02_20m.tif"], [0]),
        (["g/R10m/x_B02_10m.tif", "g/R20m/x_B02_20m.tif", "g/R20m/x_B8A_20m.tif", "g/R60m/x_B8A_60m.tif"], [0, 2]),
        (["x_B2_100m.tif", "x_B2_30m.tif", "x_nir_30m.tif", "x_nir_250m.tif"], [1, 2]),
    ],
)
def test_the_finest_file_of_a_band_is_read(tmp_path, names, kept, capfd):
    pixels = write_bands(tmp_path, sorted(names))
    store = store_of(tmp_path)
    columns = list(store.features)[:-1]
    read = {decode_raster(raw).numpy().tobytes() for raw in store.values(columns, 0)}
    assert (len(store), read) == (1, {pixels[names[number]].tobytes() for number in kept})
    assert f"{len(names) - len(kept)} image" in (line := capfd.readouterr().err)
    assert "of a band that is there with smaller pixels" in line
    assert {path.relative_to(tmp_path).as_posix() for path in store.files()} == {names[number] for number in kept}


def test_one_band_twice_is_refused(tmp_path):
    for name in ("x_B2.tif", "x_B02.tif", "x_B3.tif"):
        write_bands(tmp_path, [name])
    with pytest.raises(UserError, match=r": x_B02.tif and x_B2.tif are both B2 of one tile; keep one$"):
        store_of(tmp_path)


def write_two_sensors(root, dtype="uint16"):
    write_bands(root, [f"BigEarthNet-S1/p{n}/p{n}_{band}.tif" for n in range(4) for band in ("VV", "VH")], dtype)
    optical = [f"BigEarthNet-S2/t{n // 2}/p{n}/p{n}_{band}.tif" for n in range(3) for band in ("B02", "B03", "B8A")]
    write_bands(root, optical)
    (root / optical[1]).unlink()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_tiles_without_a_common_band_compete(tmp_path, dtype):
    """As in BigEarthNet's second version; what is offered for each sensor is read."""
    write_two_sensors(tmp_path, dtype)
    message = error_message(tmp_path, 2, bands=["VV", "VH"])
    assert "BigEarthNet-S1/p0/p0_VH.tif" in message
    for folder, bands, count in (("S1", ["VV", "VH"], 4), ("S2", ["B2", "B8A"], 3)):
        offered = f"{tmp_path}/BigEarthNet-{folder}/**/*.tif"
        assert f"data.source={offered!r} works" in message
        assert len(tiles_of(offered, 2, bands=bands, scaling="percentiles")) == count
    with pytest.raises(DamagedTile, match=r"^B3 is missing: .*p0"):
        tiles_of(offered, 1, bands=["B3"], scaling="percentiles")[0]


def test_kinds_of_tiles_are_counted(tmp_path):
    write_bands(tmp_path, [f"{n}_{band}.tif" for n in range(3) for band in ("VV", "VH")])
    write_bands(tmp_path, [f"s{n}.{band}.tif" for n in range(2) for band in ("B2", "B3")])
    with pytest.raises(UserError) as caught:
        store_of(tmp_path)
    assert str(caught.value).endswith(
        "holds 2 kinds of tiles with a file per band, of which one can be read: "
        f"3 of [vv, vh], e.g. 0_VH.tif: data.source='{tmp_path}/**/*[vVhH][vVhH]*.tif' works; "
        f"2 of [B2, B3], e.g. s0.B2.tif: data.source='{tmp_path}/s*.tif' works"
    )


def test_numbered_bands_keep_columns_and_order(tmp_path):
    """Runs that began before words and polarisations were bands read the same tiles when they resume."""
    names = ["a/t1_B12.tif", "a/t1_B2.tif", "a/t1_b8a.tif", "a/t2.B02_10m.tif", "b/B2.tif", "b/B8.tif", "b/x-B13.tif"]
    write_bands(tmp_path, names)
    store = store_of(tmp_path)
    assert list(store.features) == ["B2", "B8", "B8A", "B12", "B13", "file", "label"]
    assert store._file_numbers.tolist() == [[1, -1, 2, 0, -1], [3, -1, -1, -1, -1], [4, 5, -1, -1, -1], [-1] * 4 + [6]]
    assert store.digest() == checksum(f"{name} {(tmp_path / name).stat().st_size}" for name in names)


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
