"""moco-data inspect: figures against hand counts, Sentinel-2 baselines, damaged tiles, the contact sheet, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import typer
from PIL import Image
from tile_files import CLOUD, FIELD, FOREST, GRAVEL, SAND, SENTINEL2, SNOW, WATER, scene, write_tiles

from moco_accel.looking.baselines import darkness, may_be_sentinel2, tell_baselines
from moco_accel.looking.contact_sheet import write_sheet
from moco_accel.looking.inspection import as_json, histograms, inspect_tiles
from moco_accel.looking.inspection_report import bars, recipe_fields, warnings_of
from moco_accel.looking.look_cli import register
from moco_accel.looking.opening import open_unknown
from moco_accel.looking.sheets import sheet_corner
from moco_accel.recipe_text import RecipeError
from moco_accel.tile_facts import BandCounter, TileFacts
from moco_accel.tile_statistics import measure_statistics, sample_indices, scaled_mean_std


def baselines(tiles):
    cirrus = 10 if tiles and len(tiles[0]) == 13 else None
    return tell_baselines([dark for tile in tiles if (dark := darkness(tile, cirrus))])


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Ten tiles of two bands: band B8A of tile i is i everywhere; band B4 is 10, half of it 30."""
    tiles = []
    for value in range(10):
        tile = np.full((2, 16, 16), 10, np.uint16)
        tile[0] = value
        tile[1, :8] = 30
        tiles.append(tile)
    return write_tiles(tmp_path_factory.mktemp("known"), tiles, TileFacts(["B8A", "B4"], "uint16", nodata=None))


def test_statistics_are_those_counted_by_hand(known):
    measured = measure_statistics(open_unknown(str(known)), sample=0)
    statistics = measured.statistics
    assert (measured.looked_at, measured.tiles, measured.damaged) == (10, 10, [])
    assert statistics.pixels == [2560, 2560]
    assert statistics.mean == [4.5, 20.0]
    assert statistics.std == pytest.approx([8.25**0.5, 10.0], rel=1e-12)
    assert (statistics.minimum, statistics.maximum) == ([0, 10], [9, 30])
    # 2,560 pixels: the 1st percentile is the 26th smallest, the median the 1,280th
    assert {p: v for p, v in statistics.percentiles.items() if p in ("1", "50", "99")} == {
        "1": [0, 10],
        "50": [4, 10],
        "99": [9, 30],
    }


def test_statistics_follow_the_bands_asked_for(known):
    found = inspect_tiles(open_unknown(str(known), ["B4"]), 0)
    assert (found.bands, found.statistics.mean) == (["B4"], [20.0])


def test_pixels_without_data_are_not_counted(tmp_path):
    tile = np.full((2, 8, 8), 100, np.uint16)
    tile[:, :2] = 0  # both bands: no data
    tile[0, 2] = 0  # one band alone: a dark pixel
    write_tiles(tmp_path, [tile], TileFacts(["red", "nir"], "uint16", nodata=0))
    statistics = measure_statistics(open_unknown(str(tmp_path))).statistics
    assert statistics.pixels == [48, 48]
    assert statistics.mean == [100 * 40 / 48, 100]
    assert statistics.nodata_share == 0.25


def test_the_sample_is_spread_evenly_and_always_the_same():
    assert sample_indices(5, 0) == sample_indices(5, 5) == sample_indices(5, 9) == [0, 1, 2, 3, 4]
    chosen = sample_indices(10_000, 100)
    assert chosen == sample_indices(10_000, 100)
    assert [index // 100 for index in chosen] == list(range(100))
    assert len({index % 100 for index in chosen}) > 50  # not in step with columns of a scene
    assert [index // 2 for index in sample_indices(7, 3)] == [0, 1, 2] or max(sample_indices(7, 3)) == 6
    assert max(sample_indices(2**31, 3)) > 2**30  # no overflow


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_scaled_mean_and_std_are_those_of_the_clipped_pixels(dtype):
    rng = np.random.default_rng(0)
    tile = rng.normal(120, 40, (2, 64, 64)).clip(0, 255).astype(dtype)
    counter = BandCounter(2, dtype)
    counter.add(tile)
    low, high = [80.0, 0.0], [150.0, 300.0]
    pixels = ((tile - np.array(low)[:, None, None]) / np.ptp([low, high], 0)[:, None, None]).clip(0, 1)
    mean, std = scaled_mean_std(counter, low, high)
    exact = dtype != "float32"
    assert mean == pytest.approx(pixels.mean((1, 2)).tolist(), abs=1e-12 if exact else 2e-3)  # worst: 1.2e-3
    assert std == pytest.approx(pixels.std((1, 2)).tolist(), abs=1e-12 if exact else 1e-3)  # worst: 3.7e-4
    mean, std = scaled_mean_std(counter.statistics(), low, high)  # nothing cut off
    assert mean[1] == pytest.approx(tile[1].mean() / 300, rel=1e-5)
    assert std[1] == pytest.approx(tile[1].std() / 300, rel=1e-5)


def test_bands_that_are_the_same_everywhere_have_no_spread():
    counter = BandCounter(2, "float32")
    counter.add(np.stack([np.full((8, 8), 7, np.float32), np.full((8, 8), np.nan, np.float32)]))
    mean, std = scaled_mean_std(counter, [0, 0], [10, 10])
    assert mean == pytest.approx([0.7, 0], rel=4e-3)
    assert std == [0, 0]


def test_damaged_tiles_are_listed_and_left_out(tmp_path):
    tiles = [np.full((3, 8, 8), value, np.uint8) for value in range(30)]
    tiles[7] = np.zeros((2, 8, 8), np.uint8)
    write_tiles(tmp_path, tiles, TileFacts(["red", "green", "blue"], "uint8"), damaged=(4, 21))
    found = inspect_tiles(open_unknown(str(tmp_path)), 0)
    assert [index for index, _ in found.measured.damaged] == [4, 7, 21]
    assert found.measured.damaged[1][1].startswith("has 2 bands, not 3")
    good = [value for value in range(30) if value not in (4, 7, 21)]
    assert found.statistics.mean[0] == pytest.approx(np.mean(good), rel=1e-12)
    assert found.sizes == [((8, 8), 27)]
    assert warnings_of(found) == ["3 of 30 tiles looked at are damaged (10.00%)"]
    measured = measure_statistics(open_unknown(str(tmp_path)), 0)
    assert measured.damaged == found.measured.damaged


def test_nothing_to_count_is_an_error(tmp_path):
    tiles = [np.full((3, 8, 8), value, np.uint8) for value in range(100)]
    write_tiles(tmp_path, tiles, damaged=range(1, 100))
    with pytest.raises(RecipeError, match=r"none of the 3 tiles looked at can be read \(tile \d+: cannot be decoded"):
        measure_statistics(open_unknown(str(tmp_path)), 3)


@pytest.mark.parametrize(
    "spectra",
    [[WATER], [FOREST], [SNOW], [CLOUD], [SAND], [WATER, FOREST, FIELD], [WATER, SNOW, CLOUD, FOREST], [GRAVEL, WATER]],
)
def test_level_1c_is_told_by_its_cirrus_band(spectra):
    tiles = scene([[*spectrum[:10], 12, *spectrum[10:]] for spectrum in spectra], 60)
    later = [tile + 1000 for tile in tiles]
    assert baselines(tiles).verdict == "without"
    assert baselines(later).verdict == "with"
    assert baselines(tiles + later[:3]).verdict == "mix"
    assert baselines(tiles[:3] + later).verdict == "mix"


@pytest.mark.parametrize("spectra", [[WATER], [FOREST], [WATER, FOREST], [WATER, FOREST, FIELD], [FOREST, FIELD]])
def test_one_baseline_is_no_mix(spectra):
    tiles = scene(spectra, 120)
    assert baselines(tiles).verdict == "without"
    assert baselines([tile + 1000 for tile in tiles]).verdict == "with"


@pytest.mark.parametrize(
    "spectra",
    [
        [SNOW],
        [CLOUD],
        [SAND],
        [GRAVEL],
        [SAND, WATER],
        [GRAVEL, SAND, WATER],
        [GRAVEL, WATER],
        [SAND, GRAVEL, FIELD],
        [WATER, SNOW, CLOUD, FOREST],
    ],
)
@pytest.mark.parametrize("bands", [slice(None), [3, 2, 1]])
def test_deserts_snow_and_clouds_are_no_mix(spectra, bands):
    found = baselines([tile[bands] for tile in scene(spectra, 200)])
    assert found.verdict in ("without", "unclear"), found


@pytest.mark.parametrize("share", [0.03, 0.5, 0.97])
@pytest.mark.parametrize("bands", [slice(None), [3, 2, 1]])
def test_a_mix_is_recognised(share, bands):
    tiles = [tile[bands] for tile in scene([WATER, FOREST], 400)]
    later = np.random.default_rng(1).random(400) < share
    mixed = [tile + 1000 if offset else tile for tile, offset in zip(tiles, later, strict=True)]
    found = baselines(mixed)
    assert found.verdict == "mix", found
    assert found.without <= 400 - later.sum()
    assert 0 < found.with_offset <= later.sum()
    assert found.without + found.with_offset + found.unclear == 400


def fixture_tiles():
    """16 tiles of 32 pixels, 13 bands, of a real scene of level 1C; coarser bands repeated."""
    folder = Path(__file__).parent / "fixtures" / "sentinel2"
    layers = []
    for band in SENTINEL2:
        with Image.open(folder / f"s2_{band if band == 'B8A' else 'B' + band[1:].zfill(2)}.tif") as image:
            layer = np.array(image)
        times = -(-128 // len(layer))
        layers.append(layer.repeat(times, 0).repeat(times, 1)[:128, :128])
    return list(np.stack(layers).reshape(13, 4, 32, 4, 32).transpose(1, 3, 0, 2, 4).reshape(16, 13, 32, 32))


@pytest.mark.parametrize("bands", [slice(None), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12]])
def test_baselines_of_a_real_scene(bands):
    tiles = [tile[bands] for tile in fixture_tiles()]
    later = [np.where(tile == 0, 0, tile + 1000).astype(np.uint16) for tile in tiles]
    assert baselines(tiles).verdict == "without"
    assert baselines(later).verdict == "with"
    assert baselines(tiles[:13] + later[13:]).verdict == "mix"
    assert baselines(tiles[:3] + later[3:]).verdict == "mix"


def test_nodata_does_not_hide_the_offset():
    tiles = [tile + 1000 for tile in scene([WATER, FOREST], 40)]
    for tile in tiles:
        tile[:, :, :20] = 0
    assert baselines(tiles).verdict == "with"
    assert darkness(np.zeros((3, 32, 32), np.uint16)) is None
    assert baselines([]).verdict == "unclear"


def test_darkness_is_the_first_percentile_of_the_darkest_and_the_third_band():
    tile = np.arange(1, 1001, dtype=np.uint16).reshape(1, 20, 50) + np.array([0, 100, 300, 200])[:, None, None]
    assert darkness(tile.astype(np.uint16)) == (11, 211)
    assert darkness(tile[:1].astype(np.uint16)) == (11, 11)


def test_only_sentinel2_is_asked_for_baselines():
    assert may_be_sentinel2(SENTINEL2, 13, "uint16", None)
    assert may_be_sentinel2(["B04", "B8a"], 2, "int16", None)
    assert may_be_sentinel2(["B4", "B3", "B2"], 3, "uint16", "sentinel2")
    assert may_be_sentinel2(None, 13, "uint16", None)
    assert not may_be_sentinel2(["B4", "B3", "B2"], 3, "uint16", None)  # as well Landsat's
    assert not may_be_sentinel2(["B4", "B12"], 2, "uint16", "landsat8")
    assert not may_be_sentinel2(SENTINEL2, 13, "uint8", "sentinel2")
    assert not may_be_sentinel2(None, 4, "uint16", None)


DAMAGED = 12


@pytest.fixture(scope="module")
def sentinel2(tmp_path_factory):
    """60 labelled tiles with places and a description, one of them damaged; half stored with the offset."""
    tiles = scene([[*s[:10], 12, *s[10:]] for s in (WATER, FOREST)], 60)
    tiles = [tile + 1000 if index % 4 > 1 else tile for index, tile in enumerate(tiles)]
    bounds = datasets.Sequence(datasets.Value("float64"))
    columns = {
        "label": (datasets.ClassLabel(names=["water", "forest", "city"]), [index % 2 for index in range(60)]),
        "crs": (datasets.Value("string"), ["EPSG:32618"] * 50 + ["EPSG:32619"] * 10),
        "bounds": (bounds, [[320.0 * i, -320.0, 320.0 * (i + 1), 0.0] for i in range(60)]),
    }
    folder = tmp_path_factory.mktemp("sentinel2")
    return write_tiles(folder, tiles, TileFacts(SENTINEL2, "uint16", "sentinel2", 0), columns, damaged=(DAMAGED,))


def test_everything_is_in_the_json(sentinel2):
    found = inspect_tiles(open_unknown(str(sentinel2)), 0)
    fields = json.loads(json.dumps(as_json(found)))
    assert (fields["tiles"], fields["shards"], fields["shard_sizes"]) == (60, 1, [60])
    assert fields["bytes"] == sum(file.stat().st_size for file in sentinel2.iterdir())
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
    assert "Likely a mix" in warnings_of(found)[0]
    assert "30 with it" in warnings_of(found)[0]


def test_statistics_of_all_tiles_come_from_the_description(tmp_path):
    tiles = [np.full((1, 8, 8), value, np.uint8) for value in (10, 20)]
    counter = BandCounter(1, "uint8")
    counter.add(np.full((1, 8, 8), 99, np.uint8))
    write_tiles(tmp_path, tiles, TileFacts(["grey"], "uint8", statistics=counter.statistics()))
    found = inspect_tiles(open_unknown(str(tmp_path)), 1)
    assert (found.statistics.mean, found.statistics_of_all) == ([99.0], True)
    assert found.measured.statistics.mean[0] in (10, 20)


def test_recipe_lines_suit_the_tiles(tmp_path, known, sentinel2):
    lines = recipe_fields(inspect_tiles(open_unknown(str(known)), 0))
    assert lines["encoder"] == {"bands": 2}
    data = lines["data"]
    assert (data["bands"], data["scaling"]) == (["B8A", "B4"], "percentiles")
    assert (data["low"], data["high"]) == ([0, 10], [9, 30])
    assert data["mean"] == [0.5, 0.5]
    assert data["std"] == [pytest.approx(8.25**0.5 / 9, rel=1e-3), 0.5]
    mixed = recipe_fields(inspect_tiles(open_unknown(str(sentinel2)), 0))["data"]
    assert mixed["scaling"] == "percentiles"
    assert len(mixed["low"]) == len(mixed["high"]) == 13
    write_tiles(tmp_path, [np.full((3, 8, 8), 51, np.uint8)])
    same = recipe_fields(inspect_tiles(open_unknown(str(tmp_path)), 0))["data"]
    assert (same["scaling"], same["mean"], same["std"]) == ("uint8", [0.2] * 3, [1.0] * 3)
    assert "low" not in same


def test_histograms_and_bars():
    counter = BandCounter(1, "uint8")
    counter.add(np.repeat(np.arange(8, dtype=np.uint8), 8).reshape(1, 8, 8))
    assert histograms(counter) == [[8] * 8]
    assert bars([8, 4, 0, 1, 0, 0, 0, 0]) == "█▄ ▁    "
    assert bars([0] * 8) == " " * 8


def test_the_sheet_shows_tiles_at_their_places(tmp_path, sentinel2):
    tiles = open_unknown(str(sentinel2))
    found = inspect_tiles(tiles, 0)
    write_sheet(tmp_path / "deep" / "sheet.png", tiles, found)
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


def run_cli(*arguments, **kwargs):
    app = typer.Typer()
    register(app)
    return app(list(map(str, arguments)), standalone_mode=False, **kwargs)


def test_json_alone_goes_to_stdout(sentinel2, capfd):
    run_cli("inspect", sentinel2, "--json", "--sample", 20)
    out, err = capfd.readouterr()
    fields = json.loads(out)
    tiles = 20 - (DAMAGED in sample_indices(60, 20))
    assert (fields["looked_at"], fields["statistics_of"]) == (20, f"a sample of {tiles} tiles")
    assert fields["recipe"]["encoder"] == {"bands": 13}
    assert "bands, stored values" not in err


def test_tables_go_to_stderr(sentinel2, capfd):
    run_cli("inspect", sentinel2, "--bands", "B04,b8a")
    out, err = capfd.readouterr()
    assert out == ""
    for text in ("60 in 1 shard", "665", "red", "EPSG:32618", "forest", "50.0%", "1 damaged", "B8A"):
        assert text in err
    assert "Likely a mix" in err.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing_here"], "SOURCE='nothing_here'"),
        (["{source}", "--bands", "B4,B99"], "B99 is not there"),
        (["{source}", "--bands", "B4,,B3"], "has an empty name"),
        (["{source}", "--image-column", "label"], "data.image_column='label'"),
        (["{source}", "--sheet", "sheet.jpg"], "--sheet='sheet.jpg' does not end in .png; sheet.png works"),
    ],
)
def test_mistakes_end_in_one_line(sentinel2, capfd, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run_cli("inspect", *[argument.format(source=sentinel2) for argument in arguments])
    out, err = capfd.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert message in lines[0]


def test_the_commands_import_nothing_heavy_before_they_have_to():
    heavy = "{'torch', 'datasets', 'rasterio', 'pyarrow'}"
    code = f"import sys; import moco_accel.looking.look_cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]", done.stderr
