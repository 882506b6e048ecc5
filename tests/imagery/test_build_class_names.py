"""--class-names and the values of the label raster: matched by number, never by order."""

import numpy as np
import pytest
from support.builds import build
from support.geo_files import noise, rows_of, save_raster

from moco_accel.common.errors import UserError


@pytest.fixture
def scene(tmp_path):
    """Return a function that writes three tiles with the given classes beside each other and builds them."""

    def run(values, class_names, **raster):
        save_raster(tmp_path / "a.tif", noise(1, 32, 96), names=["B8"])
        classes = np.repeat(np.array(values, raster.pop("dtype", np.uint8)), 32)[None, None].repeat(32, axis=1)
        save_raster(tmp_path / "c.tif", classes, **raster)
        options = {"tile_size": 32, "label_raster": tmp_path / "c.tif", "class_names": class_names}
        return build(tmp_path / "a.tif", tmp_path / "out", overwrite=True, **options)

    return run


def test_names_without_numbers_are_refused_for_other_numbers_and_the_remedy_works(scene, tmp_path):
    with pytest.raises(UserError) as caught:
        scene((1, 2, 3), "water,vegetation,other")
    assert str(caught.value) == (
        f"--class-names=water,vegetation,other stands for 0, 1, 2, but --label-raster={tmp_path}/c.tif holds 1, 2, 3; "
        "--class-names 1=water,2=vegetation,3=other works"
    )
    built = scene((1, 2, 3), "1=water,2=vegetation,3=other")
    assert built.tiles_per_class == {"water": 1, "vegetation": 1, "other": 1}
    assert [row["label"] for row in rows_of(tmp_path / "out")] == [0, 1, 2]


@pytest.mark.parametrize("values", [(0, 1, 1), (0, 1, 9), (10, 20, 30)])
def test_a_class_that_lacks_or_is_left_over_is_refused(scene, values):
    with pytest.raises(UserError, match=r"stands for 0, 1, 2, but .* works") as caught:
        scene(values, "a,b,c")
    names = str(caught.value).split("--class-names ")[1].removesuffix(" works")
    assert scene(values, names).num_tiles == 3


def test_names_without_numbers_count_from_zero_and_nodata_is_no_class(scene):
    assert scene((0, 1, 2), "a,b,c").tiles_per_class == {"a": 1, "b": 1, "c": 1}
    assert scene((0, 1, 255), "d,e", nodata=255).tiles_per_class == {"d": 1, "e": 1}


def test_numbers_of_which_the_raster_holds_none_are_refused_and_a_single_one_is_noted(scene, tmp_path):
    with pytest.raises(UserError, match=r"names 7, 8, but .* holds 1, 2, 3; --class-names 1=class1,2=.*3=class3 works"):
        scene((1, 2, 3), "7=a,8=b")
    built = scene((1, 2, 3), "1=a,8=b")
    assert built.skipped == {"class 2, not in --class-names": 1, "class 3, not in --class-names": 1}
    assert f"--label-raster={tmp_path}/c.tif nowhere holds 8, which --class-names names" in built.notes


def test_negative_class_numbers_are_matched(scene):
    assert scene((-1, 0, 1), "-1=a,0=b,1=c", dtype=np.int16).tiles_per_class == {"a": 1, "b": 1, "c": 1}
