"""Types that are no stored ones are cast, if all values fit; each tile is checked, as are scale tags and pages."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine
from support.builds import build
from support.geo_files import rows_of, save_raster
from support.source_files import error_message, random_array, tiff, tiles_of, write_file, write_tar
from support.tile_files import npy

from moco_accel.images.decoding import image_facts
from moco_accel.images.headers import DamagedTile
from moco_accel.scenes.pixel_types import LossyCast, cast_pixels
from moco_accel.sources.shard_writer import write_shards
from moco_accel.tiles.stored_values import cast_values

SIDE = 12


def sample(dtype: str, high: int = 100, low: int = 0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (2, SIDE, SIDE)).astype(dtype)


@pytest.mark.parametrize("suffix", ["tif", "npy"])
@pytest.mark.parametrize(
    ("stored", "values", "read"),
    [
        ("float64", sample("float64", 5000) / 7, "float32"),
        ("float16", sample("float16"), "float32"),
        ("int8", sample("int8", 100, -100), "int16"),
        ("int32", sample("int32", 5000), "uint16"),
        ("int32", sample("int32", 5000, -5000), "int16"),
        ("int32", sample("int32", 70_000, -5), "float32"),
        ("uint32", sample("uint32", 65_536), "uint16"),
        ("uint32", sample("uint32", 1 << 24), "float32"),
        ("int64", sample("int64", 100, -2), "int16"),
        ("uint64", sample("uint64", 100), "uint16"),
    ],
)
def test_types_are_cast(
    tmp_path: Path, suffix: str, stored: str, values: np.ndarray, read: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if stored == "float16" and suffix == "tif":
        pytest.skip("rasterio writes no float16")
    for number in range(3):
        array = np.roll(values, number)
        write_file(tmp_path / f"t/{number}.{suffix}", tiff(array) if suffix == "tif" else npy(array))
    tiles = tiles_of(tmp_path / "t", 2, scaling="percentiles")
    for number in range(3):
        assert tiles[number].numpy().dtype == read
        assert np.array_equal(tiles[number].numpy(), np.roll(values, number).astype(read))
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        f"data.source='{tmp_path}/t': {stored} values are read as {read}; a tile that {read} cannot hold is damaged"
    )


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    bits = random_array((SIDE, SIDE)) > 4000
    write_file(tmp_path / "t/a.npy", npy(bits))
    assert np.array_equal(tiles_of(tmp_path / "t", 1)[0].numpy(), bits[None] * np.uint8(255))


@pytest.mark.parametrize("dtype", ["float64", "int32", "bool"])
def test_arrays_in_parquet_are_cast(tmp_path: Path, dtype: str) -> None:
    array = sample(dtype, 2)
    features = datasets.Features({"image": datasets.Array3D(array.shape, dtype)})
    write_shards([{"image": array}], features, tmp_path / "t")
    scaling = "uint8" if dtype == "bool" else "percentiles"
    (tile,) = [tiles_of(tmp_path / "t", 2, streaming=True, scaling=scaling)[0].numpy()]
    assert tile.dtype == {"float64": "float32", "int32": "uint16", "bool": "uint8"}[dtype]
    assert np.array_equal(tile, array.astype(tile.dtype) * (255 if dtype == "bool" else 1))


def test_the_number_for_no_data_decides_the_type_but_no_value(tmp_path: Path) -> None:
    """Of int32 with -9999, uint16 would hold the values only; with -2147483648 neither type holds both."""
    for nodata, read in ((-9999, "int16"), (65535, "uint16"), (-(1 << 31), "float32")):
        array = sample("int32", 5000)
        array[:, :3] = nodata
        write_file(tmp_path / f"{nodata}/a.tif", tiff(array, nodata=nodata))
        tiles = tiles_of(tmp_path / str(nodata), 2, scaling="percentiles")
        tile = tiles[0].numpy()
        assert (tile.dtype, tiles.nodata) == (read, nodata)
        assert np.array_equal(np.isnan(tile) if read == "float32" else tile == nodata, array == nodata)
        assert np.array_equal(tile[:, 3:], array[:, 3:])


def test_tiles_that_lose_values_are_damaged(tmp_path: Path) -> None:
    """Tile 2 and 3 lie outside the sample."""
    few, lost = sample("int32", 900), sample("int32", 900)
    lost[0, 5, 5] = 70_000
    raws = {0: few, 1: few, 2: lost, 3: sample("float32")}
    for number in range(1200):
        name = 2 + number % 2 if number in (1, 3) else number % 2
        write_file(tmp_path / f"t/{number:04}.npy", npy(raws[name]))
    indices = set(np.linspace(0, 1199, 1000).astype(int).tolist())
    unseen = [index for index in range(1200) if index not in indices][:2]
    for index, array in zip(unseen, (raws[2], raws[3]), strict=True):
        write_file(tmp_path / f"t/{index:04}.npy", npy(array))
    for index in {1, 3} - set(unseen):
        write_file(tmp_path / f"t/{index:04}.npy", npy(few))
    tiles = tiles_of(tmp_path / "t", 2, scaling="percentiles")
    for index, reason in zip(
        unseen, ("is int32 with values that uint16 cannot hold, such as 70000", "is float32, not uint16"), strict=True
    ):
        with pytest.raises(DamagedTile, match=reason):
            tiles[index]


def scaled(folder: Path, name: str, scale: float, offset: float = 0.0) -> None:
    array = random_array((1, SIDE, SIDE), seed=zlib.crc32(name.encode()))
    write_file(folder / name, tiff(array, ["B4"], transform=Affine(10, 0, 0, 0, -10, 0)))
    with rasterio.open(folder / name, "r+") as file:
        file.scales, file.offsets = (scale,), (offset,)


@pytest.mark.parametrize(
    ("dtype", "value", "is_kept"),
    [
        ("uint32", 1 << 25, True),  # float32 holds it
        ("uint32", (1 << 24) + 1, False),  # it would be rounded
        ("uint32", (1 << 32) - 1, False),
        ("int32", -(1 << 31), True),
        ("int32", (1 << 31) - 1, False),
        ("int64", (1 << 62) + 1, False),
        ("float64", 1e300, False),
        ("float64", 0.1, True),  # rounding of floats is not seen
    ],
)
def test_tiles_in_place_and_built_lose_the_same_values(tmp_path: Path, dtype: str, value: float, is_kept: bool) -> None:
    for number in range(3):
        tile = sample(dtype, seed=number)
        tile[0, 0, 0] = 70_000  # tiles become float32
        tile[0, 0, 1] = value if number == 2 else 0
        save_raster(tmp_path / f"t/{number}.tif", tile, names=["x", "y"])
    tiles = tiles_of(tmp_path / "t", 2, scaling="percentiles")
    built = build(tmp_path / "t", tmp_path / "out")
    assert built.metadata.dtype == "float32"
    assert (built.num_tiles, sum(built.skipped.values())) == (2 + is_kept, 1 - is_kept)
    if is_kept:
        assert tiles[2][0, 0, 1].item() == np.float32(value)
        assert rows_of(tmp_path / "out")[2]["image"][0, 0, 1] == np.float32(value)
    else:
        assert built.skipped == {"values that float32 cannot hold": 1}
        with pytest.raises(DamagedTile, match=f"is {dtype} with values that float32 cannot hold"):
            tiles[2]


def test_numbers_do_not_wrap_there_and_back() -> None:
    """As int16 the largest uint32 is -1, which is that uint32 again."""
    for dtype in ("uint32", "uint64"):
        pixels = np.array([[[np.iinfo(dtype).max, 5]]], dtype)
        with pytest.raises(DamagedTile, match="values that int16 cannot hold"):
            cast_values(pixels, "int16")
        with pytest.raises(LossyCast):
            cast_pixels(pixels, "int16", None)
        assert cast_pixels(pixels, "int16", np.array([[False, True]]))[0, 0, 1] == 5


def test_scale_tags_that_differ_are_refused(tmp_path: Path) -> None:
    scaled(tmp_path / "t", "a.tif", 1e-4)
    scaled(tmp_path / "t", "b.tif", 2.75e-5, -0.2)
    assert error_message(tmp_path / "t", 1, scaling="percentiles") == (
        f"data.source='{tmp_path}/t': equal numbers mean different values in its files: {tmp_path}/t/a.tif has scale "
        f"0.0001 and offset 0, {tmp_path}/t/b.tif scale 2.75e-05 and offset -0.2; files converted by gdal_translate "
        "-unscale -ot Float32 IN OUT work"
    )


def test_the_folders_that_are_named_when_scale_tags_differ_work(tmp_path: Path) -> None:
    scaled(tmp_path / "t/one", "a.tif", 1e-4)
    write_file(tmp_path / "t/two/a.tif", tiff(random_array((1, SIDE, SIDE)), ["B4"]))
    message = error_message(tmp_path / "t", 1, scaling="percentiles")
    assert message.endswith(f"; data.source={tmp_path}/t/one or data.source={tmp_path}/t/two works")
    for folder in ("one", "two"):
        assert len(tiles_of(tmp_path / "t" / folder, 1, scaling="percentiles")) == 1


def test_equal_scale_tags_are_printed_where_they_matter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        scaled(tmp_path / "t", f"{number}.tif", 1e-4, -0.1)
    tiles_of(tmp_path / "t", 1, scaling="percentiles")
    assert capfd.readouterr().err == ""
    tiles_of(tmp_path / "t", 1, scaling="reflectance")
    assert "scale 0.0001 and offset -0.1) are not applied; data.scaling=reflectance is of" in capfd.readouterr().err


def test_tags_in_a_tar_are_asked_too(tmp_path: Path) -> None:
    for name, scale in (("a", 1.0), ("b", 0.1)):
        scaled(tmp_path, f"{name}.tif", scale)
    write_tar(tmp_path / "t/x.tar", [(f"{n}.tif", (tmp_path / f"{n}.tif").read_bytes()) for n in ("a", "b")])
    message = error_message(tmp_path / "t", 1, scaling="percentiles")
    assert "x.tar has no scale and offset, b in" in message


def tiff_of(pages: list[tuple[np.ndarray, dict[str, Any]]], **options: Any) -> bytes:
    """A TIFF of several directories, each with its tags."""
    file = io.BytesIO()
    first, *rest = [Image.fromarray(pixels) for pixels, _ in pages]
    for image, (_, tags) in zip(rest, pages[1:], strict=True):
        image.encoderinfo = {"tiffinfo": tags}
    first.save(file, "TIFF", save_all=True, append_images=rest, **options)
    return file.getvalue()


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_pages_are_images_of_full_size(depth: type, big: bool) -> None:
    whole, half = np.random.default_rng(0).integers(0, 255, (16, 16)).astype(depth), np.zeros((8, 8), depth)
    kinds = {"overview": (half, {254: 1}), "mask": (whole, {254: 4}), "page": (whole, {254: 2}), "plain": (whole, {})}
    kinds["unmarked overview"] = (half, {})
    for names, count in (
        ((), 1), (("page",), 2), (("plain", "page"), 3), (("overview",), 1), (("unmarked overview",), 1),
        (("plain", "overview", "unmarked overview"), 2),
    ):  # fmt: skip
        raw = tiff_of([(whole, {}), *(kinds[name] for name in names)], big_tiff=big)
        assert image_facts(raw).pages == count, names


@pytest.mark.parametrize(
    ("dtype", "number"),
    [("uint32", 4294967295), ("int32", 2147483647), ("int32", -2147483647), ("int32", -999_999_999)],
)
def test_an_unmarked_number_at_the_edge_of_a_type_can_be_named(tmp_path, dtype, number):
    """The error names the number, and `data.nodata` is compared before the cast would round it."""
    array = random_array((1, SIDE, SIDE)).astype(dtype)
    array[0, 0, :5] = number
    write_file(tmp_path / "0.tif", tiff(array, ["x"]))
    with pytest.raises(DamagedTile, match=f"if it marks no data, data.nodata={number}"):
        tiles_of(tmp_path, 1, scaling="percentiles")[0]
    tile = tiles_of(tmp_path, 1, scaling="percentiles", nodata=float(number))[0]
    assert tile.isnan().sum() == 5
    assert np.array_equal(tile[0, 1:], array[0, 1:].astype(np.float32))
