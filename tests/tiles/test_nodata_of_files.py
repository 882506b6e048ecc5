"""No data is a fact of each file: its own number, NaN or mask, in folders, tars and parquet, read in place."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import rasterio
import torch
from support.geo_files import save_raster
from support.recipes import small_recipe
from support.source_files import error_message, random_array, tiff, tiles_of, write_file, write_tar
from support.tile_files import npy

from moco_accel.images.headers import DamagedTile
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.shard_writer import write_shards
from moco_accel.tiles.fill_data_fields import fill_data_fields
from moco_accel.tiles.statistics import measure_statistics
from moco_accel.tiles.tiles import Tiles
from moco_accel.training.loader import open_training_tiles
from moco_accel.views.crops import to_pixels

LOWEST = float(np.finfo(np.float32).min)
SIDE = 16


def filled(source: Path, bands: int, **data: object) -> tuple[Recipe, Tiles, list[str]]:
    recipe = small_recipe(encoder={"bands": bands}, data={"source": str(source), "scaling": "percentiles", **data})
    tiles, logged = open_training_tiles(recipe), []
    return fill_data_fields(recipe, tiles, logged.append), tiles, logged


def elevation(seed: int, fill: float, dtype: str = "float32") -> np.ndarray:
    """A tile of one band around 100, with two rows of `fill`."""
    tile = np.random.default_rng(seed).normal(100, 5, (1, SIDE, SIDE)).astype(dtype)
    tile[:, :2] = fill
    return tile


def pack(container: str, folder: Path, raws: list[bytes]) -> Path:
    if container == "folder":
        for number, raw in enumerate(raws):
            write_file(folder / f"{number}.tif", raw)
    elif container == "tar":
        write_tar(folder / "a.tar", [(f"{number}.tif", raw) for number, raw in enumerate(raws)])
    else:
        features = datasets.Features({"image": datasets.Value("binary")})
        write_shards([{"image": raw} for raw in raws], features, folder)
    return folder


@pytest.mark.parametrize("container", ["folder", "tar", "parquet"])
@pytest.mark.parametrize("tagged", [range(1, 8), range(7), range(8)], ids=["not the first", "not the last", "all"])
def test_untagged_files_are_read_as_the_tagged_ones(
    tmp_path: Path, container: str, tagged: range, capfd: pytest.CaptureFixture[str]
) -> None:
    raws = [tiff(elevation(i, -9999), nodata=-9999 if i in tagged else None) for i in range(8)]
    recipe, tiles, _ = filled(pack(container, tmp_path / "t", raws), 1, streaming=container == "parquet")
    assert recipe.data.nodata == -9999
    assert min(recipe.data.low or []) > 80
    assert recipe.data.mean == pytest.approx([0.5], abs=0.05)
    for index in range(8):
        assert tiles[index][0].isnan().sum() == 2 * SIDE
        assert tiles[index][0, :2].isnan().all()
    printed = capfd.readouterr().err
    assert ("its 8 sampled files declare" in printed) == (len(tagged) < 8)
    if len(tagged) < 8:
        assert "-9999 in 7 (such as" in printed
        assert "files that declare none are read as if they declared -9999" in printed


@pytest.mark.parametrize(
    ("fill", "tag", "dtype"),
    [(np.nan, None, "float32"), (np.nan, np.nan, "float32"), (-np.inf, -np.inf, "float32"), (LOWEST, LOWEST, "float32"),
     (LOWEST, -3.4028235e38, "float32"), (np.nan, None, "float64"), (-1.797e308, -1.797e308, "float64"),
     (LOWEST, LOWEST, "float64"), (-9999, -9999, "float32"), (1e20, 1e20, "float32")],
)  # fmt: skip
def test_float_tiles_hold_nan_where_there_is_no_data(
    tmp_path: Path, fill: float, tag: float | None, dtype: str
) -> None:
    for number in range(3):
        write_file(tmp_path / f"t/{number}.tif", tiff(elevation(number, fill, dtype), nodata=tag))
    recipe, tiles, _ = filled(tmp_path / "t", 1)
    assert tiles.dtype == torch.float32
    assert all(tiles[i].isnan().sum() == 2 * SIDE for i in range(3))
    low, high = recipe.stored_range
    assert 80 < low[0] < high[0] < 120
    pixels = to_pixels(tiles[0], recipe)
    assert torch.equal(pixels[0, :2], torch.full((2, SIDE), recipe.normalisation[0][0]))
    assert measure_statistics(tiles).running.statistics().nodata_share == pytest.approx(2 / SIDE)


def test_integer_tiles_have_one_number_for_no_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two uint16 scenes with four columns without data, tagged 0 and 65535."""
    scenes = [random_array((4, SIDE, SIDE), seed=seed) for seed in (1, 2)]
    names = ["B2", "B3", "B4", "B8"]
    for scene, (file, number) in zip(scenes, (("a", 0), ("b", 65535)), strict=True):
        scene[:, :, 4:] += 2
        scene[:, :, :4] = number
        write_file(tmp_path / f"t/{file}.tif", tiff(scene, names, nodata=number))
    scenes[1][0, 8, 8] = 0  # holds data in b, where 65535 marks none
    scenes[1][0, 8, 9] = 1
    write_file(tmp_path / "t/b.tif", tiff(scenes[1], names, nodata=65535))
    recipe, tiles, _ = filled(tmp_path / "t", 4)
    assert (recipe.data.nodata, tiles.nodata) == (0, 0)
    assert np.array_equal(tiles[0].numpy(), scenes[0])
    expected = scenes[1].copy()
    expected[:, :, :4] = 0
    expected[0, 8, 8] = 1
    assert np.array_equal(tiles[1].numpy(), expected)
    for tile in (tiles[0], tiles[1]):
        pixels = to_pixels(tile, recipe)
        assert torch.equal(pixels[:, :, :4], torch.tensor(recipe.data.mean)[:, None, None].expand(4, SIDE, 4))
    assert min(recipe.data.low or []) >= 1
    printed = capfd.readouterr().err
    assert "declare 0 in 1 (such as" in printed
    assert "the others' numbers become 0, and their valid pixels of 0 move by 1" in printed
    again = open_training_tiles(recipe)  # with the number that the run filled in
    assert all(torch.equal(again[index], tiles[index]) for index in range(2))


def test_the_largest_number_moves_down(tmp_path: Path) -> None:
    for file, number in (("a", 65535), ("b", 65535), ("c", 0)):
        tile = np.full((1, SIDE, SIDE), 65535, np.uint16)
        tile[:, :2] = number
        tile[:, 2:4] = 7
        write_file(tmp_path / f"t/{file}.tif", tiff(tile, nodata=number))
    tiles = tiles_of(tmp_path / "t", 1, scaling="percentiles")
    assert tiles.nodata == 65535
    assert [tiles[2][0, row, 0].item() for row in (0, 2, 9)] == [65535, 7, 65534]


def test_a_mask_marks_no_data(tmp_path: Path) -> None:
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    mask[:3] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        for dtype in ("uint16", "int16", "float32"):
            tile = random_array((2, SIDE, SIDE), dtype)
            tile[:, 5, 5] = 0
            save_raster(tmp_path / dtype / "a.tif", tile, mask=mask)
            tiles = tiles_of(tmp_path / dtype, 2, scaling="percentiles")
            assert tiles.nodata == {"uint16": 0, "int16": -32768, "float32": None}[dtype]
            empty = tiles[0].isnan() if dtype == "float32" else tiles[0] == tiles.nodata
            assert empty[:, :3].all()
            assert not empty[:, 3:].any()
            assert (tiles[0][0, 5, 5].item(), tiles[0][1, 9, 9].item()) == (
                1 if dtype == "uint16" else 0,
                tile[1, 9, 9],
            )


def test_the_number_of_the_recipe_and_of_the_files_both_mark_no_data(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tile = random_array((1, SIDE, SIDE), "int16") + 1
    tile[:, :2], tile[:, 2:4] = -9999, -1
    write_file(tmp_path / "t/a.tif", tiff(tile, nodata=-9999))
    tiles = tiles_of(tmp_path / "t", 1, scaling="percentiles", nodata=-1)
    assert tiles.nodata == -1
    assert np.array_equal(tiles[0].numpy(), np.where(tile == -9999, -1, tile))
    assert "pixels of data.nodata=-1 hold no data, either" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "nodata", "works"), [("uint16", -9999, 0), ("uint16", 0.5, 0), ("int16", 65535, -9999)]
)
def test_a_number_that_the_tiles_cannot_hold_is_refused(
    tmp_path: Path, dtype: str, nodata: float, works: float
) -> None:
    write_file(tmp_path / "t/a.tif", tiff(random_array((1, SIDE, SIDE), dtype)))
    message = error_message(tmp_path / "t", 1, scaling="percentiles", nodata=nodata)
    assert message.startswith(
        f"data.nodata={nodata:g}, but the tiles in '{tmp_path}/t' are {dtype}, which holds whole "
    )
    assert message.endswith(f"; data.nodata={works} works")
    assert tiles_of(tmp_path / "t", 1, scaling="percentiles", nodata=works).nodata == works


def test_no_data_does_not_bleed_into_resized_band_files(tmp_path: Path) -> None:
    fine = np.full((1, 32, 32), 500, np.uint16)
    coarse = np.full((1, SIDE, SIDE), 1000, np.uint16)
    coarse[:, :, :4] = 0
    for name, band in (("B4", fine), ("B11", coarse)):
        write_file(tmp_path / f"t/x_{name}.tif", tiff(band, nodata=0))
    tile = tiles_of(tmp_path / "t", 2, scaling="percentiles", bands=["B4", "B11"])[0]
    assert tile[1].unique().tolist() == [0, 1000]
    assert (tile[1, :, :8] == 0).all()
    assert (tile[1, :, 10:] == 1000).all()


def test_a_number_that_no_sampled_file_declares_is_damage(tmp_path: Path) -> None:
    """Nothing could mark its pixels; a tile without such pixels is whole."""
    for number in range(1100):
        write_file(tmp_path / f"t/{number:04}.npy", npy(random_array((1, 9, 9))))
    sampled = set(np.linspace(0, 1099, 1000).astype(int).tolist())
    index = next(number for number in range(1100) if number not in sampled)
    (tmp_path / f"t/{index:04}.npy").unlink()
    tile = np.full((1, 9, 9), 7, np.uint16)
    tile[0, 0] = 9
    write_file(tmp_path / f"t/{index:04}.tif", tiff(tile, nodata=9))
    tiles = tiles_of(tmp_path / "t", 1, scaling="percentiles")
    with pytest.raises(DamagedTile, match=r"marks no data as no sampled tile does; data\.nodata names the number"):
        tiles[index]
    assert (tiles_of(tmp_path / "t", 1, scaling="percentiles", nodata=9)[index][0, 0] == 9).all()
