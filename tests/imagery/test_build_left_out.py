"""Masks, label maps and quick-looks beside imagery are left out, and the note's option builds them."""

import numpy as np
import pytest
from PIL import Image
from support.build_options import follow_each, options_in
from support.builds import build, save_picture
from support.geo_files import noise, rows_of, save_raster

PLANET = ("blue", "green", "red", "nir")
COLOURS = [(255, 0, 0), (0, 0, 255), (20, 90, 30)]


def save_classes(path, values=2, seed=0, colours=None):
    """Save a label map of 32 x 32 pixels with `values` values, or with colours."""
    classes = np.random.default_rng(seed).integers(0, values, (32, 32), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(classes if colours is None else np.array(colours, np.uint8)[classes]).save(path)


def test_the_mask_beside_a_scene_is_left_out(tmp_path):
    """It has as many windows as the scene."""
    scene = save_raster(tmp_path / "p/1_3B_AnalyticMS_SR.tif", noise(4, 64, 64), nodata=0)
    save_raster(tmp_path / "p/1_3B_AnalyticMS_DN_udm.tif", noise(1, 64, 64, "uint8", low=0, high=2))
    built = build(tmp_path / "p", tmp_path / "out", band_names=PLANET)
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], scene)
    (note,) = [note for note in built.notes if "masks" in note]
    assert note == (
        "left out, because they have names of masks or label maps: 1 file, e.g. 1_3B_AnalyticMS_DN_udm.tif; "
        "--only 1_3B_AnalyticMS_DN_udm.tif without --band-names builds them"
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
    assert f"the scenes have few values, as masks and label maps do, e.g. {min(folders)}/0.png" in masks.notes


def test_colours_of_classes_are_left_out(tmp_path):
    """They have the bands and the type of the imagery."""
    for number in range(3):
        save_picture(tmp_path / f"s/sat/{number}.png", 32, 32, seed=number)
        save_classes(tmp_path / f"s/truth/{number}.png", 3, number, [(255, 0, 0), (0, 0, 255), (20, 90, 30)])
    built = build(tmp_path / "s", tmp_path / "out", tile_size=32)
    assert {row["path"].split("/")[0] for row in rows_of(tmp_path / "out")} == {"sat"}
    assert "3 files, e.g. truth/0.png; --only 'truth/*.png' builds them" in "".join(built.notes)


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


def save_tree(root, *names):
    """Save three files for each name: what they hold, a slash and a path in which # is a number."""
    for name in names:
        what, _, path = name.partition("/")
        for number in range(3):
            file = root / path.replace("#", str(number))
            if what in ("rgb", "grey"):
                save_picture(file, 32, 32, bands=3 if what == "rgb" else 1, seed=number)
            elif what == "uint16":
                save_raster(file, noise(1, 32, 32, low=0, high=5, seed=number))
            else:
                save_classes(file, 3, number, COLOURS if what == "colours" else None)


TREES = {
    "colours in one folder": ["rgb/x#.png", "colours/x#_color.png", "colours/x#_instance_color.png"],
    "a folder of colours": ["rgb/a/x#.png", "colours/gts_x/x#.png"],
    "all kinds": ["rgb/a#.png", "rgb/a#_thumb.png", "classes/a#_mask.png", "colours/a#_rgb.png", "classes/truth/#.png"],
    "two kinds of masks": ["rgb/i/#.png", "classes/masks/#.png", "colours/masks_rgb/#.png"],
    "unnamed bands": ["rgb/i/#.png", "uint16/instance_ids/#.tif", "uint16/truth/#.tif"],
    "in splits": ["rgb/sea/#.png", "classes/sea/masks/#.png", "rgb/land/#.png", "classes/land/masks/#.png"],
}


@pytest.mark.parametrize("kind", TREES)
def test_the_option_of_each_note_builds_as_many_files_as_it_counts(tmp_path, kind):
    root = tmp_path / "s"
    save_tree(root, *TREES[kind])
    built = build(root, tmp_path / "out", tile_size=32, max_cloud=1.0)
    names = {name.partition("/")[2].replace("#", "0") for name in TREES[kind] if name.startswith("rgb/")}
    assert {row["path"] for row in rows_of(tmp_path / "out")} >= {x for x in names if "thumb" not in x}
    notes = [note for note in built.notes if note.startswith("left out, because they have")]
    counts = [int(note.partition(": ")[2].split()[0]) for note in notes]
    assert built.num_tiles + sum(counts) == sum(1 for path in root.rglob("*.*"))
    for note, count in zip(notes, counts, strict=True):
        (files,) = follow_each(root, note)
        assert note.partition("e.g. ")[2].split(";")[0] in files
        assert len(files) == count
        assert note.endswith("builds them")


def test_without_an_option_the_note_asks_for_a_folder_of_their_own(tmp_path):
    for number in range(6):  # more than can be named one by one
        save_classes(tmp_path / f"s/{number}a.png", 3, number, COLOURS)
        save_picture(tmp_path / f"s/{number}ba.png", 32, 32, seed=number)
    built = build(tmp_path / "s", tmp_path / "out", tile_size=32)
    (note,) = [note for note in built.notes if "few values" in note]
    assert note.endswith(": 6 files, e.g. 0a.png; a folder of their own builds them")
    (tmp_path / "maps").mkdir()
    for number in range(6):
        (tmp_path / f"s/{number}a.png").rename(tmp_path / f"maps/{number}a.png")
    assert build(tmp_path / "maps", tmp_path / "built", tile_size=32).num_tiles == 6


def test_a_mask_that_cannot_be_built_comes_with_the_reason(tmp_path):
    for number in range(3):
        save_picture(tmp_path / f"s/images/{number}.png", 32, 32)
        classes = np.zeros((1, 32, 32), np.uint8)
        save_raster(tmp_path / f"s/masks/{number}.tif", classes, photometric="palette", colour_table={0: (9, 9, 9)})
    built = build(tmp_path / "s", tmp_path / "out", tile_size=32)
    assert built.notes[-1] == (
        "left out, because they have names of masks or label maps: 3 files, e.g. masks/0.tif, which has a colour "
        "table, so its numbers are classes or palette entries, not intensities"
    )


def test_the_option_of_a_note_says_if_other_options_must_go(tmp_path):
    save_tree(tmp_path / "s", "rgb/images/#.png", "classes/masks/#.png")
    built = build(tmp_path / "s", tmp_path / "out", tile_size=32, bands=["red", "green"])
    assert "; --only 'masks/*.png' without --bands builds them" in "".join(built.notes)
    assert build(tmp_path / "s", tmp_path / "masks", tile_size=32, only=["masks/*.png"]).num_tiles == 3


def test_label_maps_in_folders_of_classes_are_left_out_if_the_class_holds_imagery(tmp_path):
    save_tree(tmp_path / "s", "rgb/town/t#.png", "colours/town/t#_color.png", "rgb/sea/s#.png", "colours/sea/s#_x.png")
    built = build(tmp_path / "s", tmp_path / "out", tile_size=32, labels_from_folders=True)
    assert built.tiles_per_class == {"sea": 3, "town": 3}
    assert "6 files, e.g. sea/s0_x.png" in "".join(built.notes)
