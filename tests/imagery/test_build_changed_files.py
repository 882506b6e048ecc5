"""Files that are renamed, changed, removed or added after a build began cost their own tiles only."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from support.builds import OPTIONS, build, file_contents, interrupt_build, run_moco_data, save_picture
from support.geo_files import noise, rows_of, save_raster

from moco_accel.common.errors import UserError
from moco_accel.imagery.options import BuildOptions, build_identity

CHANGED = "changed or removed since the build began"
LISTED = f"{CHANGED}; its remaining tiles are left out"


def paths_of(out):
    return [row["path"] for row in rows_of(out)]


@pytest.fixture
def begun(tmp_path):
    """12 pictures in two classes, of four tiles each; a first shard of 32 tiles, of eight pictures, is complete."""
    for number in range(12):
        save_picture(tmp_path / f"src/class{number // 6}/{number:02d}.png", 200, 200, seed=number)
    interrupt_build(tmp_path / "src", tmp_path / "out", 40, **OPTIONS)
    return tmp_path / "src", tmp_path / "out"


@pytest.mark.parametrize("change", ["removed", "renamed", "other size", "truncated", "no picture"])
def test_a_changed_picture_loses_its_own_tiles(begun, change):
    source, out = begun
    path = source / "class1/11.png"
    if change == "removed":
        path.unlink()
    elif change == "renamed":
        path.rename(source / "class1/99.png")
    elif change == "other size":
        save_picture(path, 300, 300)
    else:
        path.write_bytes(path.read_bytes()[: 20_000 if change == "truncated" else 10])
    built = build(source, out, **OPTIONS)
    assert (built.num_tiles, built.num_resumed) == (44, 32)
    assert sorted(set(paths_of(out))) == [f"class{n // 6}/{n:02d}.png" for n in range(11)]
    ((file, reason),) = built.left_out
    assert file == str(path)
    if change in ("removed", "renamed", "other size"):
        assert (reason, built.skipped) == (LISTED, {CHANGED: 4})
    new = [note for note in built.notes if "after the build began" in note]
    if change == "renamed":
        assert new == [
            "1 scene came after the build began or did not fit it, e.g. class1/99.png; --overwrite begins anew"
        ]
    else:
        assert new == []


def test_a_picture_whose_tiles_are_complete_may_go(begun):
    source, out = begun
    (source / "class0/00.png").unlink()
    built = build(source, out, **OPTIONS)
    assert (built.num_tiles, built.left_out, built.skipped) == (48, [], {})


def test_a_renamed_class_folder_loses_its_remaining_tiles(begun):
    source, out = begun
    (source / "class1").rename(source / "sea")
    built = build(source, out, **OPTIONS)
    assert built.tiles_per_class == {"class0": 24, "class1": 8}
    assert build(source, out, overwrite=True, **OPTIONS).tiles_per_class == {"class0": 24, "sea": 24}
    (source / "sea").rename(source / "lake")
    with pytest.raises(UserError, match="holds tiles built from files that have changed since"):
        build(source, out, **OPTIONS)


def test_a_class_whose_only_picture_became_unreadable_stays_a_class(tmp_path):
    for number in range(12):
        save_picture(tmp_path / f"src/class{min(number, 1)}/{number:02d}.png", 200, 200, seed=number)
    out, path = tmp_path / "out", tmp_path / "src/class0/00.png"
    interrupt_build(tmp_path / "src", out, 40, **OPTIONS)
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert build(tmp_path / "src", out, **OPTIONS).tiles_per_class == {"class0": 4, "class1": 44}
    assert build(tmp_path / "src", out, overwrite=True, **OPTIONS).tiles_per_class == {"class1": 44}


def test_a_file_of_another_kind_that_was_added_does_not_stop_a_build(begun):
    source, out = begun
    save_picture(source / "class1/new.png", 200, 200, bands=1)
    save_picture(source / "class2/new.png", 200, 200)
    built = build(source, out, **OPTIONS)
    assert (built.num_tiles, built.tiles_per_class) == (48, {"class0": 24, "class1": 24})
    assert "2 scenes came after the build began or did not fit it, e.g. class1/new.png" in "".join(built.notes)


def test_touched_files_change_nothing(begun, tmp_path):
    source, out = begun
    for path in source.rglob("*.png"):
        os.utime(path)
    assert build(source, out, **OPTIONS).num_resumed == 32
    for path in source.rglob("*.png"):
        os.utime(path)
    build(source, tmp_path / "whole", **OPTIONS)
    first, second = file_contents(out), file_contents(tmp_path / "whole")
    assert {name: raw for name, raw in first.items() if "json" not in name} == {
        name: raw for name, raw in second.items() if "json" not in name
    }


def test_all_scenes_gone_is_an_error_and_nothing_is_lost(begun):
    source, out = begun
    shutil.copytree(source, source.with_name("kept"))
    for path in source.rglob("*.png"):
        path.unlink()
    save_picture(source / "class0/other.png", 200, 200)
    with pytest.raises(UserError, match=r"none of the 12 scenes that the build began with is in SRC=.*; put them back"):
        build(source, out, **OPTIONS)
    shutil.copytree(source.with_name("kept"), source, dirs_exist_ok=True)
    assert build(source, out, **OPTIONS).num_tiles == 48


def test_without_a_complete_shard_a_build_begins_anew(tmp_path):
    save_picture(tmp_path / "src/a.png", 200, 200)
    save_picture(tmp_path / "src/b.png", 200, 200)
    interrupt_build(tmp_path / "src", tmp_path / "out", 1, tile_size=100)
    (tmp_path / "src/b.png").rename(tmp_path / "src/c.png")
    built = build(tmp_path / "src", tmp_path / "out", tile_size=100)
    assert (paths_of(tmp_path / "out")[4], built.num_tiles) == ("c.png", 8)


def test_the_nodata_number_of_the_beginning_is_kept(tmp_path):
    """The scenes that declare the most frequent number are removed; those left declare another."""
    for number in range(6):
        declared = 7 if number < 4 else 9
        pixels = noise(2, 512, 512, seed=number)
        pixels[:, 0] = declared
        save_raster(tmp_path / f"src/{number}.tif", pixels, names=["B4", "B8"], nodata=declared)
    options = {"tile_size": 256, "max_shard_mb": 1}
    interrupt_build(tmp_path / "src", tmp_path / "out", 12, **options)
    for number in range(3):
        (tmp_path / f"src/{number}.tif").unlink()
    built = build(tmp_path / "src", tmp_path / "out", **options)
    assert built.metadata.nodata == 7
    last = rows_of(tmp_path / "out")[-4]
    assert (last["path"], last["image"][0, 0].tolist()) == ("5.tif", [7] * 256)


def test_a_file_that_vanishes_while_it_is_cut_is_listed(tmp_path):
    for number in range(3):
        save_raster(tmp_path / f"src/{number}.tif", noise(3, 32, 32, "uint8"))

    def remove(stage, done, total, kept):
        if stage == "windows":
            (tmp_path / "src/2.tif").unlink(missing_ok=True)

    built = build(tmp_path / "src", tmp_path / "out", tile_size=32, on_progress=remove)
    assert built.num_tiles == 2
    assert [Path(path).name for path, _ in built.left_out] == ["2.tif"]


def test_a_name_that_is_no_utf8_is_left_out_at_once(tmp_path):
    for number in range(3):
        save_picture(tmp_path / f"src/{number}.png", 32, 32, seed=number)
    Image.new("RGB", (32, 32), (9, 90, 190)).save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/src/zz\xe9.png")))
    done = run_moco_data("build", tmp_path / "src", tmp_path / "out", "--tile-size", 32)
    text = " ".join(done.stderr.split())
    assert done.exit_code == 0
    assert f"{tmp_path}/src/zz\\xe9.png: has a name that is no UTF-8; rename it, e.g. with convmv" in text
    assert paths_of(tmp_path / "out") == ["0.png", "1.png", "2.png"]
    os.mkdir(os.fsencode(tmp_path) + b"/only\xff")  # noqa: PTH102 - bytes
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/only\xff"))
    save_picture(folder / "a.png", 32, 32)
    with pytest.raises(UserError, match=r"only\\xff/a.png: has a name that is no UTF-8"):
        build(folder, tmp_path / "none")


def test_a_build_that_an_earlier_version_began_resumes_if_no_file_changed(begun):
    """Earlier versions did not store the scenes."""
    source, out = begun
    path = out / ".build/decided.json"
    decided = {name: value for name, value in json.loads(path.read_text()).items() if name != "begun"}
    path.write_text(json.dumps(decided))
    os.utime(source / "class1/11.png")
    with pytest.raises(UserError, match="holds a build begun from files that have changed since"):
        build(source, out, **OPTIONS)
    options = json.loads((out / ".build/options.json").read_text())
    options["files"] = build_identity(source, BuildOptions(**OPTIONS))["files"]
    (out / ".build/options.json").write_text(json.dumps(options))
    assert build(source, out, **OPTIONS).num_resumed == 32
