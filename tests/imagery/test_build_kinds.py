"""Masks, label maps and quick-looks beside imagery; kinds of imagery that compete, and the options that choose."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image
from support.builds import build, save_picture
from support.geo_files import noise, rows_of, save_raster

from moco_accel.common.errors import UserError

PLANET = ("blue", "green", "red", "nir")


def save_classes(path, values=2, seed=0, colours=None):
    """Save a label map of 32 x 32 pixels with `values` values, or with colours."""
    classes = np.random.default_rng(seed).integers(0, values, (32, 32), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(classes if colours is None else np.array(colours, np.uint8)[classes]).save(path)


def options_in(message):
    """Return the options that an error or a note names, each as arguments of `build`."""
    found = []
    for text in re.findall(r"(?:--(?:bands|band-names|only) (?:'[^']*'|[^ ;]+) ?)+", message):
        words = shlex.split(text)
        pairs = list(zip(words[::2], words[1::2], strict=True))
        arguments = {"only": [word for flag, word in pairs if flag == "--only"]}
        named = {flag[2:].replace("-", "_"): word.split(",") for flag, word in pairs}
        arguments |= {name: value for name, value in named.items() if name != "only"}
        found.append({name: value for name, value in arguments.items() if value})
    return found


def test_the_mask_beside_a_scene_is_left_out(tmp_path):
    """It has as many windows as the scene."""
    scene = save_raster(tmp_path / "p/1_3B_AnalyticMS_SR.tif", noise(4, 64, 64), nodata=0)
    save_raster(tmp_path / "p/1_3B_AnalyticMS_DN_udm.tif", noise(1, 64, 64, "uint8", low=0, high=2))
    built = build(tmp_path / "p", tmp_path / "out", band_names=PLANET)
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], scene)
    (note,) = [note for note in built.notes if "masks" in note]
    assert note == (
        "left out, because they have names of masks or label maps: 1 file, e.g. 1_3B_AnalyticMS_DN_udm.tif; "
        "--only '1_3B_AnalyticMS_DN_udm.tif' builds them"
    )
    assert build(tmp_path / "p", tmp_path / "masks", **options_in(note)[0]).metadata.bands == ["grey"]


@pytest.mark.parametrize("folders", [("masks", "masks_b"), ("labels/a", "gt"), ("truth", "classes")])
def test_folders_of_masks_are_left_out_by_name_or_by_value(tmp_path, folders):
    """`truth` and `classes` are no usual names."""
    for number in range(3):
        save_picture(tmp_path / f"s/images/{number}.png", 32, 32, seed=number)
        for folder in folders:
            save_classes(tmp_path / f"s/{folder}/{number}.png", seed=number)
    built = build(tmp_path / "s", tmp_path / "out", tile_size=32)
    assert [row["path"] for row in rows_of(tmp_path / "out")] == [f"images/{number}.png" for number in range(3)]
    (note,) = [note for note in built.notes if "label maps" in note]
    assert "6 files" in note
    masks = build(tmp_path / "s", tmp_path / "masks", tile_size=32, **options_in(note)[0])
    assert (masks.num_tiles, masks.metadata.bands) == (6, ["grey"])
    assert masks.notes[1:] == [f"the scenes have few values, as masks and label maps do, e.g. {min(folders)}/0.png"]


def test_colours_of_classes_are_left_out(tmp_path):
    """They have the bands and the type of the imagery."""
    for number in range(3):
        save_picture(tmp_path / f"s/sat/{number}.png", 32, 32, seed=number)
        save_classes(tmp_path / f"s/truth/{number}.png", 3, number, [(255, 0, 0), (0, 0, 255), (20, 90, 30)])
    built = build(tmp_path / "s", tmp_path / "out", tile_size=32)
    assert {row["path"].split("/")[0] for row in rows_of(tmp_path / "out")} == {"sat"}
    assert "3 files, e.g. truth/0.png; --only 'truth/*' builds them" in "".join(built.notes)


def test_folders_of_classes_with_few_values_are_imagery(tmp_path):
    """A dark sea has few values, and none of a label's."""
    for number in range(3):
        save_picture(tmp_path / f"s/town/{number}.png", 32, 32, bands=1, seed=number)
        sea = np.random.default_rng(number).integers(40, 48, (32, 32), dtype=np.uint8)
        (tmp_path / "s/sea").mkdir(exist_ok=True)
        Image.fromarray(sea).save(tmp_path / f"s/sea/{number}.png")
    assert build(tmp_path / "s", tmp_path / "out", tile_size=32).num_tiles == 6
    for number in range(3):
        save_classes(tmp_path / f"s/sea/{number}.png")
    assert build(tmp_path / "s", tmp_path / "labelled", tile_size=32, labels_from_folders=True).num_tiles == 6
    assert build(tmp_path / "s", tmp_path / "plain", tile_size=32).num_tiles == 3


def competing(root, kind):
    """Write two kinds of imagery of 32 x 32 pixels."""
    if kind == "grey and RGB":
        save_picture(root / "a/1.png", 32, 32)
        save_picture(root / "b/2.png", 32, 32, bands=1)
    elif kind == "types":
        save_raster(root / "x_a.tif", noise(2, 32, 32), names=["B4", "B8"])
        save_raster(root / "y_a.tif", noise(2, 32, 32, "float32"), names=["B4", "B8"])
        save_raster(root / "z_a.tif", noise(2, 32, 32, "float32"), names=["B4", "B8"])
    elif kind == "unnamed":
        save_raster(root / "4/a.tif", noise(4, 32, 32), photometric="minisblack")
        save_raster(root / "5/a.tif", noise(5, 32, 32), photometric="minisblack")
    elif kind == "products":
        for number in range(5):
            save_raster(root / f"{number}_AnalyticMS_SR.tif", noise(2, 32, 32), names=["B4", "B8"])
            save_raster(root / f"{number}_AnalyticMS_TOAR.tif", noise(2, 32, 32), names=["B4", "B8"])
    elif kind == "resolutions":
        for number in range(5):
            save_raster(root / f"10m/{number}.tif", noise(2, 64, 64), names=["B4", "B8"])
            save_raster(root / f"20m/{number}.tif", noise(2, 32, 32), names=["B4", "B8"])
    else:
        for name, scale in (("a", 1e-4), ("b", 2.75e-5)):
            save_raster(root / f"{name}.tif", noise(1, 32, 32), names=["B4"])
            import rasterio

            with rasterio.open(root / f"{name}.tif", "r+") as file:
                file.scales = (scale,)


@pytest.mark.parametrize("kind", ["grey and RGB", "types", "unnamed", "products", "resolutions", "scale tags"])
def test_competing_kinds_are_refused_and_each_option_of_the_message_builds_one(tmp_path, kind):
    competing(tmp_path / "s", kind)
    with pytest.raises(UserError, match="holds 2 kinds of imagery, of which one can be built; choose") as caught:
        build(tmp_path / "s", tmp_path / "none")
    options = options_in(str(caught.value))
    assert len(options) == 2
    paths = []
    for index, option in enumerate(options):
        build(tmp_path / "s", tmp_path / f"out{index}", **option)
        paths.append({row["path"] for row in rows_of(tmp_path / f"out{index}")})
    assert not paths[0] & paths[1]
    assert len(paths[0] | paths[1]) == sum(1 for path in (tmp_path / "s").rglob("*.*"))


def test_scenes_of_different_days_are_one_kind(tmp_path):
    for day in ("20200101", "20200601"):
        save_raster(tmp_path / f"s/T18_{day}_SR.tif", noise(2, 32, 32), names=["B4", "B8"])
    assert build(tmp_path / "s", tmp_path / "out").num_tiles == 2


def test_quick_looks_are_left_out_beside_imagery_only(tmp_path):
    save_raster(tmp_path / "s/a.tif", noise(2, 32, 32), names=["B4", "B8"])
    for name in ("a-ql.jpg", "a_thumb_large.jpg", "preview.png"):
        save_picture(tmp_path / f"s/{name}", 32, 32)
    built = build(tmp_path / "s", tmp_path / "out")
    assert built.metadata.bands == ["B4", "B8"]
    assert "left out, because they have names of quick-looks: 3 files, e.g. a-ql.jpg; " in "".join(built.notes)
    (tmp_path / "s/a.tif").unlink()
    assert build(tmp_path / "s", tmp_path / "looks").num_tiles == 3


def test_a_label_raster_in_the_folder_of_the_scenes_is_no_scene(tmp_path):
    save_raster(tmp_path / "s/a.tif", noise(2, 32, 32), names=["B4", "B8"])
    save_raster(tmp_path / "s/worldcover.tif", np.full((1, 32, 32), 10, np.uint8))
    built = build(tmp_path / "s", tmp_path / "out", label_raster=tmp_path / "s/worldcover.tif")
    assert (built.tiles_per_class, built.left_out) == ({"10": 1}, [])


def test_only_must_match_something(tmp_path):
    save_picture(tmp_path / "s/a/1.png", 32, 32)
    with pytest.raises(UserError) as caught:
        build(tmp_path / "s", tmp_path / "out", only=["b/*"])
    assert str(caught.value).endswith(
        f"--only='b/*' matches none of the 1 images in '{tmp_path}/s', e.g. a/1.png; --only '*.png' works"
    )
    assert build(tmp_path / "s", tmp_path / "out", only=["*.png"]).num_tiles == 1
