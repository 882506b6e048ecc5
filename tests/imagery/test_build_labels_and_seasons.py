"""Labels from a label raster, and pairs of seasons."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.builds import build, save_picture
from support.geo_files import facts_of, noise, rows_of, save_raster

from moco_accel.common.errors import UserError
from moco_accel.imagery.build_report import print_build_result


def class_names(out):
    import datasets

    return datasets.Features.from_arrow_schema(pq.read_schema(next(out.glob("*.parquet"))))["label"].names


@pytest.fixture
def scene(tmp_path):
    """A scene of 64 × 96 pixels of 10 m; the label raster has pixels of 20 m and begins 40 m further north-west."""
    save_raster(tmp_path / "scene.tif", noise(1, 64, 96), names=["B8"], origin=(1000, 5000))
    classes = np.full((40, 60), 10, np.uint8)
    classes[:, 18:] = 80  # column 18 begins at x = 960 + 360 = 1320: the second tile
    classes[18:, 18:] = 30  # row 18 begins at y = 5040 - 360 = 4680: the second row of tiles
    classes[:18, 34:] = 255  # x from 1640: the third tile
    save_raster(tmp_path / "classes.tif", classes[None], origin=(960, 5040), metres=20)
    return tmp_path


def test_the_label_is_the_majority_class_within_the_tile(scene):
    built = build(scene / "scene.tif", scene / "out", tile_size=32, label_raster=scene / "classes.tif")
    assert class_names(scene / "out") == ["10", "30", "80", "255"]
    rows = rows_of(scene / "out")
    found = {(row["row"], row["col"]): row["label"] for row in rows}
    assert found == {(0, 0): 0, (0, 32): 2, (0, 64): 3, (32, 0): 0, (32, 32): 1, (32, 64): 1}
    assert built.tiles_per_class == {"10": 2, "30": 2, "80": 1, "255": 1}


def test_tiles_without_a_clear_or_named_class_are_skipped(scene):
    """At stride 16, the window at column 16 is half one class and half another."""
    options = {"tile_size": 32, "stride": 16, "label_raster": scene / "classes.tif"}
    built = build(scene / "scene.tif", scene / "out", class_names="10=forest, 80=water", **options)
    rows = rows_of(scene / "out")
    assert class_names(scene / "out") == ["forest", "water"]
    assert {(row["row"], row["col"]): row["label"] for row in rows} == {(0, 0): 0, (16, 0): 0, (32, 0): 0, (0, 32): 1}
    # whole tiles of 255 and 30, and mixed ones
    unnamed = {"class 255, not in --class-names": 1, "class 30, not in --class-names": 3}
    assert built.skipped == {**unnamed, "no clear label": 7}
    half = build(scene / "scene.tif", scene / "half", class_names="10=forest, 80=water", min_majority=0.5, **options)
    assert half.num_tiles == 4 + 3 + 2  # column 16 in three rows, (16, 32) and (0, 48)


def test_a_label_raster_in_another_crs_with_gaps(tmp_path):
    """The raster is in degrees and has data in the southern half only; its nodata number is not a class."""
    from rasterio.warp import transform

    save_raster(tmp_path / "scene.tif", noise(1, 64, 64), names=["B8"], origin=(500_000, 4_000_000), metres=100)
    (west, east), (north, south) = transform("EPSG:32618", "EPSG:4326", [500_000, 503_200], [4_000_000, 3_993_600])
    step = (east - west) / 64
    classes = np.full((1, 400, 64), 3, np.uint8)
    classes[:, : int((north - south) / 2 / step)] = 0
    save_raster(tmp_path / "classes.tif", classes, crs="EPSG:4326", origin=(west, north), metres=step, nodata=0)
    built = build(tmp_path / "scene.tif", tmp_path / "out", tile_size=16, label_raster=tmp_path / "classes.tif")
    assert {(row["row"], row["col"]) for row in rows_of(tmp_path / "out")} == {(32, 0), (32, 16), (48, 0), (48, 16)}
    assert (class_names(tmp_path / "out"), built.skipped) == (["3"], {"no label there": 10, "no clear label": 2})


def test_label_errors_name_the_option_and_what_works(scene, build_error):
    message = partial(build_error, scene / "scene.tif")

    save_picture(scene / "plain.png", 32, 32)
    raster = scene / "classes.tif"
    absent = "--class-names='a,b' needs --label-raster, which is absent; leave it out"
    assert message(class_names="a,b") == absent
    for names in ("a,a", "1=a,b", "x=a", "a,,b"):
        assert "does not list distinct classes; sea,land or 10=forest,80=water" in message(
            label_raster=raster, class_names=names
        )
    assert "does not exist" in message(label_raster=scene / "nowhere.tif")
    assert "has no coordinate system" in build_error(scene / "plain.png", label_raster=raster)
    save_raster(scene / "float.tif", noise(1, 32, 32, "float32"))
    works = "a georeferenced GeoTIFF of one band of class numbers (uint8) works"
    assert message(label_raster=scene / "float.tif") == f"--label-raster={scene}/float.tif has 1 × float32; {works}"
    save_raster(scene / "three.tif", noise(3, 32, 32, "uint8"))
    assert message(label_raster=scene / "three.tif") == f"--label-raster={scene}/three.tif has 3 × uint8; {works}"
    save_raster(scene / "flat.tif", noise(1, 32, 32, "uint8"), crs=None)
    assert message(label_raster=scene / "flat.tif").endswith(f"flat.tif has no coordinate system; {works}")
    save_raster(scene / "many.tif", np.arange(1024, dtype=np.uint16).reshape(1, 32, 32))
    assert "has over 256 classes" in message(label_raster=scene / "many.tif")
    assert "give only one of them" in message(label_raster=raster, labels_from_folders=True)


def test_seasons_pair_by_place(tmp_path):
    """The other season has two scenes with shifted pixels of the same size, and one with other bands."""
    world = noise(2, 100, 200, seed=1)
    summer = save_raster(tmp_path / "summer/a.tif", noise(2, 32, 128), names=["B4", "B8"], origin=(0, 0))
    save_raster(tmp_path / "winter/east.tif", world[:, :, 90:], names=["B4", "B8"], origin=(500, 100))
    save_raster(tmp_path / "winter/west.tif", world[:, :, :80], names=["B4", "B8"], origin=(-400, 100))
    save_raster(tmp_path / "winter/other.tif", world[:1], names=["B4"], origin=(0, 100))
    built = build(tmp_path / "summer", tmp_path / "out", tile_size=32, pair_with=tmp_path / "winter")
    rows = rows_of(tmp_path / "out")
    # west ends at x = 400, east begins at 500: neither covers the tile at x = 320 to 640
    assert [(row["row"], row["col"]) for row in rows] == [(0, 0), (0, 64), (0, 96)]
    assert (built.skipped, built.notes[-1]) == (
        {"no partner": 1},
        "2 of 3 scenes of --pair-with have the same bands; paired by place",
    )
    for row in rows:
        left = row["col"]
        assert np.array_equal(row["image"], summer[:, :, left : left + 32])
        assert np.array_equal(row["image_pair"], world[:, 10:42, left + 40 : left + 72])
    # both tiles of a pair are counted
    assert facts_of(tmp_path / "out")["statistics"]["pixels"] == [6 * 32 * 32] * 2


def test_paired_scenes_are_resampled_to_the_pixels_of_the_tile_and_checked(tmp_path):
    save_raster(tmp_path / "summer/a.tif", noise(1, 32, 64), names=["B8"])
    coarse = np.full((1, 32, 64), 500, np.uint16)
    coarse[:, :, 16:32] = 0
    save_raster(tmp_path / "winter/a.tif", coarse, names=["B8"], metres=20, nodata=0)
    built = build(tmp_path / "summer", tmp_path / "out", tile_size=32, pair_with=tmp_path / "winter")
    assert (built.num_tiles, built.skipped) == (1, {"partner: no data": 1})
    pair = rows_of(tmp_path / "out")[0]["image_pair"]
    assert pair.shape == (1, 32, 32)
    assert (pair == 500).all()


def test_pictures_pair_by_path_and_keep_their_bytes(tmp_path, capfd):
    for number, season in enumerate(("summer", "winter")):
        save_picture(tmp_path / season / "x/a.png", 64, 32, seed=number)
        save_picture(tmp_path / season / "b.jpg", 32, 32, seed=number + 2)
    save_picture(tmp_path / "summer/alone.png", 32, 32)
    save_picture(tmp_path / "summer/c.png", 32, 32)
    save_picture(tmp_path / "winter/c.png", 32, 40)
    built = build(tmp_path / "summer", tmp_path / "out", tile_size=32, pair_with=tmp_path / "winter")
    assert (built.num_tiles, built.skipped) == (3, {"no partner": 2})
    rows = pq.read_table(tmp_path / "out/tiles-00000-of-00001.parquet").to_pylist()
    assert [row["path"] for row in rows] == ["b.jpg", "x/a.png", "x/a.png"]
    print_build_result(built, Path("my [pairs]"), has_pairs=True)
    assert (
        "--set 'data.source=my [pairs]' --set encoder.bands=3 --set data.pair_column=image_pair "
        "--set augment.preset=seasons\n"
    ) in capfd.readouterr().err
    assert rows[0]["image_pair"]["bytes"] == (tmp_path / "winter/b.jpg").read_bytes()
    with pytest.raises(UserError, match=r"--pair-with='.*' does not exist"):
        build(tmp_path / "summer", tmp_path / "none", pair_with=tmp_path / "spring")
    save_raster(tmp_path / "spring/a.tif", noise(2, 32, 32), names=["x", "y"])
    with pytest.raises(UserError, match=r"holds no scene with the same bands; .*a.tif has bands"):
        build(tmp_path / "summer", tmp_path / "none", pair_with=tmp_path / "spring")
