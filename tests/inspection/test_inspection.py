"""moco-data inspect: its report, damaged tiles, the contact sheet, errors."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from support.builds import refused, run_command
from support.tile_files import FOREST, SENTINEL2, WATER, spectral_tiles, write_known_tiles, write_tiles

from moco_accel.inspection.inspect_tiles import count_histograms, inspect_tiles, inspection_as_json
from moco_accel.inspection.open_without_recipe import is_read_in_place, open_without_recipe
from moco_accel.inspection.picture_grid import sheet_corner, tile_captions, write_contact_sheet
from moco_accel.inspection.report import draw_bars, list_warnings, recipe_fields
from moco_accel.sources.tile_metadata import TileMetadata
from moco_accel.tiles.running_statistics import RunningStatistics
from moco_accel.tiles.statistics import measure_statistics, sample_indices


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return write_known_tiles(tmp_path_factory.mktemp("known"))


def test_statistics_follow_the_selected_bands(known):
    found = inspect_tiles(open_without_recipe(str(known), bands=["B4"]), 0)
    assert (found.tiles.bands, found.statistics.mean) == (["B4"], [20.0])


def test_damaged_tiles_are_listed_and_left_out(tmp_path):
    tiles = [np.full((3, 8, 8), value, np.uint8) for value in range(30)]
    tiles[7] = np.zeros((2, 8, 8), np.uint8)
    write_tiles(tmp_path, tiles, TileMetadata(["red", "green", "blue"], "uint8"), damaged=(4, 21))
    found = inspect_tiles(open_without_recipe(str(tmp_path)), 0)
    assert [index for index, _ in found.measured.damaged] == [4, 7, 21]
    assert found.measured.damaged[1][1].startswith("has 2 bands, not 3")
    good = [value for value in range(30) if value not in (4, 7, 21)]
    assert found.statistics.mean[0] == pytest.approx(np.mean(good), rel=1e-12)
    assert found.sizes == [((8, 8), 27)]
    damaged, black = list_warnings(found)
    assert damaged == "3 of 30 tiles read are damaged (10.00%)"
    assert black.startswith(f"{tmp_path}: 3.7% of the pixels are 0 in all bands")
    measured = measure_statistics(open_without_recipe(str(tmp_path)), 0)
    assert measured.damaged == found.measured.damaged


DAMAGED = 12


@pytest.fixture(scope="module")
def sentinel2(tmp_path_factory):
    """60 labelled tiles with positions and metadata, one of them damaged; half stored with the offset."""
    tiles = spectral_tiles([[*s[:10], 12, *s[10:]] for s in (WATER, FOREST)], 60)
    tiles = [tile + 1000 if index % 4 > 1 else tile for index, tile in enumerate(tiles)]
    bounds = datasets.Sequence(datasets.Value("float64"))
    columns = {
        "label": (datasets.ClassLabel(names=["water", "forest", "city"]), [index % 2 for index in range(60)]),
        "crs": (datasets.Value("string"), ["EPSG:32618"] * 50 + ["EPSG:32619"] * 10),
        "bounds": (bounds, [[320.0 * i, -320.0, 320.0 * (i + 1), 0.0] for i in range(60)]),
    }
    folder = tmp_path_factory.mktemp("sentinel2")
    return write_tiles(folder, tiles, TileMetadata(SENTINEL2, "uint16", "sentinel2", 0), columns, damaged=(DAMAGED,))


def test_the_json_is_complete(sentinel2):
    found = inspect_tiles(open_without_recipe(str(sentinel2)), 0)
    fields = json.loads(json.dumps(inspection_as_json(found)))
    assert (fields["tiles"], fields["shards"], fields["shard_sizes"]) == (60, 1, [60])
    assert fields["bytes"] == sum(file.stat().st_size for file in sentinel2.glob("*.parquet"))
    assert (fields["dtype"], fields["sensor"], fields["nodata"]) == ("uint16", "sentinel2", 0)
    assert fields["sizes"] == [{"height": 32, "width": 32, "tiles": 59}]
    assert [band["name"] for band in fields["bands"]] == SENTINEL2
    assert fields["labels"] == {"water": 30, "forest": 30, "city": 0}
    assert [tile["tile"] for tile in fields["damaged"]] == [DAMAGED]
    assert fields["baselines"]["verdict"] == "mix"
    assert fields["baselines"]["tiles_with_offset"] == 30
    assert [(e["crs"], e["tiles"], e["left"], e["right"]) for e in fields["extents"]] == [
        ("EPSG:32618", 50, 0, 16_000),
        ("EPSG:32619", 10, 16_000, 19_200),
    ]
    assert fields["statistics_of"] == "all tiles"
    assert "Likely a mix" in list_warnings(found)[0]
    assert "30 with it" in list_warnings(found)[0]


def test_statistics_of_all_tiles_come_from_the_metadata(tmp_path):
    tiles = [np.full((1, 8, 8), value, np.uint8) for value in (10, 20)]
    counter = RunningStatistics(1, "uint8")
    counter.add(np.full((1, 8, 8), 99, np.uint8))
    write_tiles(tmp_path, tiles, TileMetadata(["grey"], "uint8", statistics=counter.statistics()))
    found = inspect_tiles(open_without_recipe(str(tmp_path)), 1)
    assert (found.statistics.mean, found.statistics_of_all) == ([99.0], True)
    assert found.measured.running.statistics().mean[0] in (10, 20)


def test_recipe_fields_fit_the_tiles(tmp_path, known, sentinel2):
    lines = recipe_fields(inspect_tiles(open_without_recipe(str(known)), 0))
    assert lines["encoder"] == {"bands": 2}
    data = lines["data"]
    assert (data["bands"], data["scaling"]) == (["B8A", "B4"], "percentiles")
    assert (data["low"], data["high"]) == ([0, 10], [9, 30])
    assert data["mean"] == [0.5, 0.5]
    assert data["std"] == [pytest.approx(8.25**0.5 / 9, rel=1e-3), 0.5]
    mixed = recipe_fields(inspect_tiles(open_without_recipe(str(sentinel2)), 0))["data"]
    assert mixed["scaling"] == "percentiles"
    assert len(mixed["low"]) == len(mixed["high"]) == 13
    write_tiles(tmp_path, [np.full((3, 8, 8), 51, np.uint8)])
    same = recipe_fields(inspect_tiles(open_without_recipe(str(tmp_path)), 0))["data"]
    assert (same["scaling"], same["mean"], same["std"]) == ("uint8", [0.2] * 3, [1.0] * 3)
    assert "low" not in same


def test_histograms_and_bars():
    counter = RunningStatistics(1, "uint8")
    counter.add(np.repeat(np.arange(8, dtype=np.uint8), 8).reshape(1, 8, 8))
    assert count_histograms(counter) == [[8] * 8]
    assert draw_bars([8, 4, 0, 1, 0, 0, 0, 0]) == "█▄ ▁    "
    assert draw_bars([0] * 8) == " " * 8


def test_the_sheet_draws_each_tile_in_its_cell(tmp_path, sentinel2):
    tiles = open_without_recipe(str(sentinel2))
    found = inspect_tiles(tiles, 0)
    write_contact_sheet(tmp_path / "deep" / "sheet.png", found)
    indices = sample_indices(60, 48)
    low, high = (np.array(found.statistics.percentiles[p])[[3, 2, 1]] for p in ("2", "98"))
    with Image.open(tmp_path / "deep" / "sheet.png") as sheet:
        for place in (0, 7, 8, 47):
            left, top = sheet_corner(place)
            tile = tiles[indices[place]].numpy()[[3, 2, 1]]
            expected = ((tile - low[:, None, None]) / (high - low)[:, None, None]).clip(0, 1) * 255
            scale = 144 / 32
            for row, col in ((0, 0), (31, 31), (5, 20)):
                pixel = sheet.getpixel((left + int((col + 0.5) * scale), top + int((row + 0.5) * scale)))
                assert pixel == pytest.approx(expected[:, row, col], abs=0.51)
        left, top = sheet_corner(indices.index(DAMAGED))
        assert sheet.getpixel((left + 3, top + 3)) == (0xF6, 0xE7, 0xE6)


def test_only_json_goes_to_stdout(sentinel2, capfd):
    run_command("inspect", sentinel2, "--json", "--sample", 20)
    out, err = capfd.readouterr()
    fields = json.loads(out)
    tiles = 20 - (DAMAGED in sample_indices(60, 20))
    assert (fields["looked_at"], fields["statistics_of"]) == (20, f"a sample of {tiles} tiles")
    assert fields["recipe"]["encoder"] == {"bands": 13}
    assert "bands, stored values" not in err


def test_tables_go_to_stderr(sentinel2, capfd):
    run_command("inspect", sentinel2, "--bands", "B04,b8a")
    out, err = capfd.readouterr()
    assert out == ""
    for text in ("60 in 1 shard", "665", "red", "EPSG:32618", "forest", "50.0%", "1 damaged", "B8A"):
        assert text in err
    assert "Likely a mix" in err.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing_here"], "SOURCE='nothing_here'"),
        (["{source}", "--bands", "B4,B99"], "--bands=B4,B99 but '{source}' has [B1, B2"),
        (["{source}", "--band-names", "B4,B3"], "--band-names=B4,B3, but the bands of '{source}' have names: [B1, B2"),
        (["{source}", "--bands", "B4,,B3"], "has an empty name"),
        (["{source}", "--image-column", "label"], "--image-column=label of '{source}' is ClassLabel"),
        (["{source}", "--image-column", "img"], "; --image-column=image works"),
        (["{source}", "--sheet", "sheet.jpg"], "--sheet='sheet.jpg' does not end in .png; sheet.png works"),
    ],
)
def test_errors_take_one_line(sentinel2, capfd, arguments, message):
    line = refused(capfd, "inspect", *[argument.format(source=sentinel2) for argument in arguments])
    assert message.format(source=sentinel2) in line
    assert "data." not in line


def test_the_commands_import_heavy_packages_late():
    heavy = "{'torch', 'datasets', 'rasterio', 'pyarrow'}"
    code = f"import sys; import moco_accel.inspection.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stderr


def test_tiles_without_a_class_are_not_counted(tmp_path):
    labels = [1, -1, None, 0, 1]
    for kind, names in ((datasets.ClassLabel(names=["sea", "land"]), ["sea", "land"]), (None, ["0", "1"])):
        folder = tmp_path / names[0]
        tiles = [np.full((3, 8, 8), value, np.uint8) for value in range(5)]
        write_tiles(folder, tiles, columns={"label": (kind or datasets.Value("int64"), labels)})
        opened = open_without_recipe(str(folder))
        assert tile_captions(opened, range(5), has_classes=True) == [
            f"0  {names[1]}",
            "1",
            "2",
            f"3  {names[0]}",
            f"4  {names[1]}",
        ]
        assert inspect_tiles(opened, 0).labels == {names[0]: 1, names[1]: 2}


def test_inspecting_holds_one_row_group(tmp_path):
    tiles = [np.random.default_rng(value).integers(0, 256, (3, 128, 128), dtype=np.uint8) for value in range(256)]
    write_tiles(tmp_path, tiles)  # four row groups of 3 MiB
    gc.collect()  # memory of earlier tests, freed later, would count as negative
    before, held = pa.total_allocated_bytes(), []
    opened = open_without_recipe(str(tmp_path / "t?les-[0-9]*.parquet"))
    inspect_tiles(opened, 0, lambda done, total: held.append(pa.total_allocated_bytes() - before))
    assert 3 * 2**20 < held[-1] < 3.1 * 2**20  # measured: 3.01; all four are 12


@pytest.mark.parametrize("source", ["hf://datasets/a/b/c.parquet", "t-?.parquet", "t-[01].parquet", "*.tar", "."])
def test_sources_read_in_place(source):
    assert is_read_in_place(source)
    assert not is_read_in_place("owner/name")
