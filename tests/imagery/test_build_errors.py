"""Errors of builds that keep no tile or have contradictory options: the reason, and what works."""

import re
from functools import partial

import numpy as np
import pytest
from support.builds import build, run_moco_data, save_picture
from support.geo_files import noise, rows_of, save_raster

RULE = "scenes pair by place if both have a CRS, otherwise by the same path below SRC and --pair-with and the same size"


@pytest.fixture
def message(build_error):
    return partial(build_error, tile_size=32)


def test_two_single_files_pair_despite_different_names(tmp_path):
    save_picture(tmp_path / "july.png", 32, 64, seed=1)
    winter = save_picture(tmp_path / "january.png", 32, 64, seed=2).transpose(2, 0, 1)
    built = build(tmp_path / "july.png", tmp_path / "out", tile_size=32, pair_with=tmp_path / "january.png")
    assert built.notes == ["1 of 1 scenes of --pair-with have the same bands; paired by path, because some have no CRS"]
    pairs = [row["image_pair"] for row in rows_of(tmp_path / "out")]
    assert np.array_equal(np.concatenate(pairs, axis=2), winter)


def test_a_scene_with_a_crs_pairs_by_path_with_one_without(tmp_path):
    save_raster(tmp_path / "a/x.tif", noise(1, 32, 32), names=["B8"], origin=(1000, 1000))
    flat = save_raster(tmp_path / "b/x.tif", noise(1, 32, 32, seed=1), names=["B8"], crs=None)
    for here, there, seed in (("a", "b", 1), ("b", "a", 0)):
        build(tmp_path / here, tmp_path / f"out_{here}", tile_size=32, pair_with=tmp_path / there)
        pair = rows_of(tmp_path / f"out_{here}")[0]["image_pair"]
        assert np.array_equal(pair, noise(1, 32, 32, seed=seed))
    assert np.array_equal(flat, noise(1, 32, 32, seed=1))


def test_the_error_without_pairs_names_the_reason_and_the_rule(tmp_path, message):
    save_picture(tmp_path / "summer/a.png", 32, 64)
    save_picture(tmp_path / "winter/b.png", 32, 64)
    assert message(tmp_path / "summer", pair_with=tmp_path / "winter") == (
        f"no scene of SRC has a pair: no scene of --pair-with has the path a.png; one has b.png; {RULE}"
    )
    save_picture(tmp_path / "winter/a.png", 32, 60)
    assert message(tmp_path / "summer", pair_with=tmp_path / "winter") == (
        f"no scene of SRC has a pair: {tmp_path}/summer/a.png has 32 × 64 pixels, "
        f"{tmp_path}/winter/a.png has 32 × 60 pixels; {RULE}"
    )
    for name, crs, x in (("here", "EPSG:32618", 0), ("east", "EPSG:32618", 900), ("zone", "EPSG:32619", 0)):
        save_raster(tmp_path / f"{name}/a.tif", noise(1, 32, 32), names=["B8"], crs=crs, origin=(x, 320))
    assert message(tmp_path / "here", pair_with=tmp_path / "east") == (
        f"no scene of SRC has a pair: {tmp_path}/here/a.tif (x 0 to 320, y 0 to 320 (EPSG:32618)) does not "
        f"overlap {tmp_path}/east/a.tif (x 900 to 1220, y 0 to 320 (EPSG:32618)); {RULE}"
    )
    assert "(EPSG:32619)); gdalwarp -t_srs converts both to one CRS; " in message(
        tmp_path / "here", pair_with=tmp_path / "zone"
    )
    save_raster(tmp_path / "part/a.tif", noise(1, 32, 32), names=["B8"], origin=(10, 320))
    assert message(tmp_path / "here", pair_with=tmp_path / "part") == (
        f"none of 1 windows was kept (no partner: 1); no scene of --pair-with covers a whole tile: {RULE}"
    )
    for same in (tmp_path / "here", tmp_path / "east/../here"):
        assert message(tmp_path / "here", pair_with=same) == (
            f"--pair-with={same} is SRC itself; give the folder of another season"
        )


def test_the_error_without_labels_names_the_reason(tmp_path, message):
    save_raster(tmp_path / "a.tif", noise(1, 32, 64), names=["B8"], origin=(500_000, 4_000_000), metres=100)
    classes = np.full((1, 32, 64), 10, np.uint8)
    classes[:, :, 32:] = 20
    near, far = tmp_path / "near.tif", tmp_path / "far.tif"
    save_raster(near, classes, origin=(500_000, 4_000_000), metres=100)
    save_raster(far, classes, crs="EPSG:4326", origin=(20, 50), metres=0.01)
    assert message(tmp_path / "a.tif", label_raster=far) == (
        f"--label-raster={far} covers none of the 1 scenes: it spans x 20 to 20.64, y 49.68 to 50 (EPSG:4326), "
        "the first scene x 500000 to 506400, y 3996800 to 4000000 (EPSG:32618), "
        "that is x -75 to -74.9289, y 36.1158 to 36.1447 (EPSG:4326); a raster of the same place works"
    )
    save_raster(far, classes, origin=(0, 0))
    assert "y 3996800 to 4000000 (EPSG:32618); a raster" in message(tmp_path / "a.tif", label_raster=far)
    assert message(tmp_path / "a.tif", label_raster=near, class_names="sea,land") == (
        f"--class-names=sea,land stands for 0, 1, but --label-raster={near} holds 10, 20; "
        "--class-names 10=sea,20=land works"
    )
    classes[:, ::2] = 30
    save_raster(near, classes, origin=(500_000, 4_000_000), metres=100)
    assert message(tmp_path / "a.tif", label_raster=near) == (
        "none of 2 windows was kept (no clear label: 2); "
        "no class covers --min-majority 0.6 of a tile; try --min-majority 0.3"
    )
    save_raster(near, classes * 0, origin=(500_000, 4_000_000), metres=100, nodata=0)
    assert message(tmp_path / "a.tif", label_raster=near, class_names="sea") == (
        "none of 2 windows was kept (no label there: 2); a label raster with data at the place of the scenes works"
    )


def test_only_the_most_frequent_unnamed_classes_are_counted_one_by_one(tmp_path):
    save_raster(tmp_path / "a.tif", noise(1, 16, 16 * 31), names=["B8"])
    save_raster(tmp_path / "c.tif", np.arange(31, dtype=np.uint8).repeat(16)[None, None].repeat(16, axis=1))
    built = build(
        tmp_path / "a.tif", tmp_path / "out", tile_size=16, label_raster=tmp_path / "c.tif", class_names="7=sea"
    )
    assert built.tiles_per_class == {"sea": 1}
    assert (len(built.skipped), built.skipped["other classes, not in --class-names"]) == (21, 10)


def test_hints_match_the_reasons_found(tmp_path, message):
    pixels = noise(3, 32, 64, "uint8")
    pixels[:, :, :32] = 0
    pixels[:, :, 32:] = 250
    save_raster(tmp_path / "a.tif", pixels, nodata=0)
    assert message(tmp_path / "a.tif") == (
        "none of 2 windows was kept (cloud white: 1, no data: 1); --max-nodata 1 --max-cloud 1 keeps them"
    )


@pytest.mark.parametrize(
    ("dtype", "number", "holds"),
    [
        ("uint8", 300, "uint8, which holds whole numbers from 0 to 255; --nodata 0 works"),
        ("uint8", 0.5, "uint8, which holds whole numbers from 0 to 255; --nodata 0 works"),
        ("uint16", -1, "uint16, which holds whole numbers from 0 to 65535; --nodata 0 works"),
        ("int16", float("nan"), "int16, which holds whole numbers from -32768 to 32767; --nodata -9999 works"),
        ("float32", 1e39, "float32, which holds numbers from -3.4028235e+38 to 3.4028235e+38; --nodata -9999 works"),
    ],
)
def test_nodata_must_fit_the_dtype_of_the_imagery(tmp_path, message, dtype, number, holds):
    save_raster(tmp_path / "a.tif", noise(1, 32, 32, dtype), names=["B8"])
    assert message(tmp_path / "a.tif", nodata=number) == f"--nodata={number:g}: the imagery is {holds}"


def test_options_without_effect_are_errors(tmp_path, message):
    save_picture(tmp_path / "src/sea/a.png", 32, 32)
    assert message(tmp_path / "src", min_majority=0.5, labels_from_folders=True) == (
        "--min-majority=0.5 needs --label-raster, which is absent; leave it out"
    )
    assert message(tmp_path / "src", nodata=256) == (
        "--nodata=256: the imagery is uint8, which holds whole numbers from 0 to 255; --nodata 0 works"
    )
    assert message(tmp_path / "src", workers=0) == "--workers=0 must be at least 1; --workers 1 needs the least memory"


def test_the_error_for_too_few_band_names_proposes_one_for_each_band(tmp_path, message):
    save_picture(tmp_path / "src/a.png", 32, 32)
    assert message(tmp_path / "src", band_names=("red",)).endswith(
        "a.png: has 3 bands, --band-names=red names 1; --band-names red,green,blue works"
    )


def test_paths_with_brackets_are_printed_whole_and_help_states_the_pairing_rule(tmp_path):
    save_picture(tmp_path / "src [out]/[red]sea/a[b].png", 32, 32)
    (tmp_path / "src [out]/[red]sea/b[i].png").write_text("x")
    out = tmp_path / "[out]"
    done = run_moco_data("build", tmp_path / "src [out]", out, "--labels-from-folders")
    text = " ".join(done.stderr.split())
    assert f"searching for scenes in {tmp_path}/src [out] " in text
    assert f"{tmp_path}/src [out]/[red]sea/b[i].png: cannot be" in text
    assert f"--set 'data.source={out}' --set encoder.bands=3" in text
    assert "│ [red]sea │ 1 │" in text
    assert f"{out} is complete" in run_moco_data("build", tmp_path / "src [out]", out, "--labels-from-folders").stderr
    text = " ".join(run_moco_data("build", "--help").stdout.split())
    assert "pair by place if both have a CRS, otherwise by the same path below SRC and SRC2" in text


SPLITS = {
    "folders": ({"test/0.png": 3, "train/0.png": 3}, ["train/*.png", "test/*.png", "*"]),
    "folders with words": ({"val2017/0.png": 3, "train2017/0.png": 3}, ["train2017/*.png", "val2017/*.png", "*"]),
    "file names": ({"a_train_0.png": 3, "a_test_0.png": 3}, ["a_test_*.png", "a_train_*.png", "*"]),
    "words in the middle": (
        {"x_train_0_a.png": 3, "y_train_0_b.png": 3, "x_test_0_a.png": 3, "y_test_0_b.png": 3},
        ["*test*", "*train*", "*"],
    ),
    "many folders": (
        {f"towns/{town}_{split}/0.png": 3 for town in "abcdef" for split in ("train", "test")},
        ["**/*test*/**/*", "**/*train*/**/*", "*"],
    ),
    "a third folder": (
        {"train_set/a/0.png": 3, "val_set/a/0.png": 3, "extra/0.png": 3},
        ["extra/*.png", "train_set/a/*.png", "val_set/a/*.png", "*"],
    ),
}


@pytest.mark.parametrize("kind", SPLITS)
def test_splits_are_counted_and_each_option_builds_one(tmp_path, message, kind):
    files, globs = SPLITS[kind]
    for name, count in files.items():
        for number in range(count):
            save_picture(tmp_path / "s" / name.replace("0.png", f"{number}.png").replace("_0_", f"_{number}_"), 32, 32)
    text = message(tmp_path / "s")
    assert text.startswith(f"SRC='{tmp_path}/s' holds several splits, which are seldom built together; choose with the")
    offered = re.findall(r"--only '([^']+)'", text)
    assert sorted(offered) == sorted(globs)
    counts = [int(count) for count in re.findall(r"(\d+) files of", text)]
    for number, (pattern, count) in enumerate(zip(offered, [*counts, sum(counts)], strict=True)):
        assert build(tmp_path / "s", tmp_path / f"out{number}", tile_size=32, only=[pattern]).num_tiles == count


def test_splits_are_asked_for_before_the_headers_are_read_and_masks_are_none(tmp_path, message):
    for name in ("train/0.png", "train/masks/0.png", "test_masks/0.png"):
        save_picture(tmp_path / "s" / name, 32, 32, bands=1 + 2 * ("mask" not in name))
    assert build(tmp_path / "s", tmp_path / "one", tile_size=32).num_tiles == 1
    (tmp_path / "s/test").mkdir()
    (tmp_path / "s/test/0.png").write_text("damaged")
    assert message(tmp_path / "s").endswith(
        "choose with the option behind it: 1 file of test, e.g. test/0.png: --only test/0.png; "
        "1 file of train, e.g. train/0.png: --only train/0.png; --only '*' takes all"
    )
    assert build(tmp_path / "s", tmp_path / "all", tile_size=32, only=["*"]).num_tiles == 1


def test_words_for_splits_in_unlike_names_are_no_splits(tmp_path):
    for name in ("train_station/0.png", "test_track/0.png", "validation_of_x/0.png"):
        save_picture(tmp_path / "s" / name, 32, 32)
    assert build(tmp_path / "s", tmp_path / "out", tile_size=32, labels_from_folders=True).num_tiles == 3


def test_an_option_for_a_kind_takes_no_file_that_only_left_out(tmp_path, message):
    for town in ("rome", "oslo"):
        for kind, dtype in (("a", "uint16"), ("b", "float32")):
            for number in (1, 2):
                save_raster(tmp_path / f"s/{town}/{kind}_{number}.tif", noise(1, 32, 32, dtype), names=["B8"])
    offered = re.findall(r"--only '([^']+)'", message(tmp_path / "s", only=["*_1.tif"]))
    assert sorted(offered) == ["**/*a_1.tif", "**/*b_1.tif"]
    for number, pattern in enumerate(offered):
        assert build(tmp_path / "s", tmp_path / f"out{number}", tile_size=32, only=[pattern]).num_tiles == 2
