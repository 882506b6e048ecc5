"""Damaged imagery loses only its own tiles; a damaged or unwritable OUT is an error of one line."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.builds import OPTIONS, build, file_contents, interrupt_build, run_moco_data, save_picture
from support.geo_files import noise, rows_of, save_raster

from moco_accel.common.errors import UserError


def mutants(path, count):
    """Write damaged copies beside a file: up to 8 bytes changed, mostly in headers at either end, or truncated."""
    raw = path.read_bytes()
    for number in range(count):
        draw, changed = np.random.default_rng(number), bytearray(raw)
        for _ in range(draw.integers(1, 9)):
            first, last = [(0, 300), (len(raw) - 300, len(raw)), (0, len(raw))][draw.integers(3)]
            changed[min(draw.integers(max(first, 0), last), len(raw) - 1)] = draw.integers(256)
        if draw.random() < 0.2:
            del changed[draw.integers(len(raw)) :]
        name, _, kind = path.name.partition(".")
        path.with_name(f"{name}_{number:03d}.{kind}").write_bytes(changed)


def test_unreadable_files_are_left_out_with_a_reason(tmp_path):
    src = tmp_path / "src"
    save_picture(src / "a.png", 32, 32)
    save_picture(src / "b_truncated.png", 32, 32)
    (src / "b_truncated.png").write_bytes((src / "b_truncated.png").read_bytes()[:1500])
    (src / "c_text.jpg").write_text("hello")
    save_raster(src / "d_double.tif", np.zeros((3, 32, 32)))
    save_picture(src / "e_grey.png", 32, 32, bands=1)
    save_picture(src / "f_transparent.png", 32, 32, bands=4)
    opaque = np.full((32, 32, 4), 200, np.uint8)
    opaque[..., 3] = 255
    Image.fromarray(opaque).save(src / "g_opaque.png")
    Image.new("P", (32, 32)).save(src / "h_palette.png")
    Image.new("CMYK", (32, 32)).save(src / "i_cmyk.jpg")
    save_raster(src / "j_classes.tif", np.zeros((1, 32, 32), np.uint8), photometric="palette")
    built = build(src, tmp_path / "out", tile_size=32, bands=("red", "green", "blue"))
    reasons = {path.rpartition("/")[2]: reason for path, reason in built.left_out}
    assert sorted(reasons) == ["b_truncated.png", "c_text.jpg", "d_double.tif", "e_grey.png", "j_classes.tif"]
    assert reasons["b_truncated.png"].startswith("is damaged (")
    assert reasons["c_text.jpg"] == "cannot be identified; JPEG, PNG, TIFF and JPEG 2000 files can be read"
    assert reasons["d_double.tif"] == (
        "has bands [3 without names] float32, most tiles [red, green, blue] uint8; build them separately"
    )
    assert "lacks bands" in reasons["e_grey.png"]
    assert reasons["j_classes.tif"].startswith("has a colour table")
    assert (built.num_scenes, built.num_tiles, built.num_left_out, built.skipped) == (5, 4, 5, {"cloud white": 1})
    assert [int(row["image"].mean()) for row in rows_of(tmp_path / "out")[2:]] == [200, 0]


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "geo.tif"])
def test_damaged_files_do_not_stop_a_build(tmp_path, kind):
    """Each file is cut or left out with a reason of one line; the intact one is cut."""
    good = tmp_path / f"src/a.{kind}"
    if kind == "geo.tif":
        save_raster(good, noise(3, 32, 32, "uint8"), compress="deflate", nodata=7)
    else:
        save_picture(good, 32, 32, **{"compression": "tiff_lzw"} if kind == "tif" else {})
    mutants(good, 200)
    bands = ("red", "green", "blue")  # some damaged headers declare one band
    built = build(tmp_path / "src", tmp_path / "out", tile_size=32, bands=bands)
    assert built.num_scenes + built.num_left_out == 201
    reasons = dict(built.left_out)
    assert str(good) not in reasons
    assert len(reasons) == built.num_left_out > 50
    assert not any("\n" in reason for reason in reasons.values())


def test_damaged_paired_scenes_and_bands_do_not_stop_a_build(tmp_path):
    save_raster(tmp_path / "src/a.tif", noise(3, 32, 32, "uint8"))
    save_raster(tmp_path / "src/b.tif", noise(3, 32, 32, "uint8"), origin=(3, 3))
    save_raster(tmp_path / "winter/a.tif", noise(3, 64, 64, "uint8"), origin=(-4, 4), compress="deflate")
    mutants(tmp_path / "winter/a.tif", 100)
    save_raster(tmp_path / "classes.tif", np.ones((1, 64, 64), np.uint8), origin=(-4, 4))
    built = build(
        tmp_path / "src", tmp_path / "out", pair_with=tmp_path / "winter", label_raster=tmp_path / "classes.tif"
    )
    assert built.num_tiles + sum(built.skipped.values()) == 2
    for number in range(60):
        folder = tmp_path / f"bands/{number:02d}"
        save_raster(folder / "x_B2.tif", noise(1, 32, 32))
        save_raster(folder / "x_B1.tif", noise(1, 17, 17), metres=20, compress="deflate")
        mutants(folder / "x_B1.tif", 1) if number else None
        for changed in folder.glob("x_B1_*.tif"):
            changed.replace(folder / "x_B1.tif")
    built = build(tmp_path / "bands", tmp_path / "stacked", tile_size=32)
    assert built.num_scenes + built.num_left_out == 60
    assert built.num_tiles >= 1


@pytest.mark.parametrize(
    ("name", "text"),
    [("tiles.json", '{"bands": ['), ("tiles.json", "{}"), ("build.json", "[]"), ("build.json", '{"asked": {}}')],
)
def test_a_damaged_finished_build_is_an_error_of_one_line(tmp_path, name, text):
    save_picture(tmp_path / "src/a.png", 32, 32)
    out = tmp_path / "out"
    build(tmp_path / "src", out)
    before, path = file_contents(out), out / "__moco__" / name
    if text == '{"asked": {}}':
        path.write_text(path.read_text().replace("num_tiles", "tiles"))
    else:
        path.write_text(text)
    result = run_moco_data("build", tmp_path / "src", out)
    assert result.exit_code == 2
    assert " ".join(result.stderr.split()).endswith(
        f"OUT={str(out)!r} holds a damaged {name}; choose another folder, or pass --overwrite"
    )
    assert run_moco_data("build", tmp_path / "src", out, "--overwrite").exit_code == 0
    assert file_contents(out).keys() == before.keys()


@pytest.mark.parametrize("name", ["state.npz", "options.json", "decided.json"])
def test_a_damaged_unfinished_build_is_an_error_of_one_line(source, whole, tmp_path, name):
    out = tmp_path / "out"
    interrupt_build(source, out, 60, **OPTIONS)
    raw = (out / ".build" / name).read_bytes()
    (out / ".build" / name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match=rf"holds a damaged .build/{name}; choose another folder, or pass --over"):
        build(source, out, **OPTIONS)
    assert build(source, out, overwrite=True, **OPTIONS).num_resumed == 0
    assert file_contents(out) == whole


def test_a_write_error_while_publishing_keeps_the_shards(source, whole, tmp_path):
    """A folder has the name build.json."""
    out = tmp_path / "out"
    interrupt_build(source, out, 60, **OPTIONS)
    (out / "__moco__/build.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot be written \(Is a directory\); complete shards are kept \(5\), and"):
        build(source, out, **OPTIONS)
    (out / "__moco__/build.json").rmdir()
    assert build(source, out, **OPTIONS).num_resumed == 156
    assert file_contents(out) == whole


def test_a_build_killed_while_it_removes_its_journal_is_finished(source, whole, tmp_path, monkeypatch):
    """The lock is closed before: NFS would keep an open file, and so the folder."""
    out, real = tmp_path / "out", shutil.rmtree

    def die_half_way(folder, **more):
        if Path(folder, "state.npz").exists():
            Path(folder, "state.npz").unlink()
            fds = Path("/proc/self/fd")
            assert not any(os.path.realpath(fd).endswith("/lock") for fd in fds.iterdir()) or not fds.is_dir()
            raise KeyboardInterrupt
        real(folder, **more)

    monkeypatch.setattr(shutil, "rmtree", die_half_way)
    with pytest.raises(KeyboardInterrupt):
        build(source, out, **OPTIONS)
    monkeypatch.undo()
    assert build(source, out, **OPTIONS).found_complete
    assert file_contents(out) == whole
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["__moco__"]


def test_overwrite_does_not_disturb_a_running_build(source, tmp_path):
    out = tmp_path / "out"

    def second(stage, done, total, kept):
        if kept >= 60:
            before = sorted(path.name for path in (out / ".build").iterdir())
            assert "shard-00000.parquet" in before
            with pytest.raises(UserError, match="is being written by another build"):
                build(source, out, overwrite=True, **OPTIONS | {"tile_size": 50})
            assert sorted(path.name for path in (out / ".build").iterdir()) == before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, out, on_progress=second, **OPTIONS)
