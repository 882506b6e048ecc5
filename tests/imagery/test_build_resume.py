"""Builds that are stopped, killed or repeated: resumed, refused or replaced."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.builds import OPTIONS, build, file_contents, interrupt_build, save_picture

from moco_accel.common.errors import UserError
from moco_accel.imagery.build import build_tiles
from moco_accel.imagery.options import BuildOptions
from moco_accel.imagery.plan import _fingerprint
from moco_accel.scenes.find_scenes import Scene
from moco_accel.scenes.grids import Grid
from moco_accel.scenes.layouts import Layout


@pytest.mark.parametrize("tiles", [0, 1, 60, 100, 156])
def test_a_resumed_build_equals_an_uninterrupted_one(source, whole, tmp_path, tiles):
    out = tmp_path / "out"
    interrupt_build(source, out, tiles, **OPTIONS)
    assert [path.name for path in out.iterdir()] == [".build"]
    built = build(source, out, **OPTIONS)
    assert file_contents(out) == whole
    assert built.num_tiles == 156
    assert built.num_resumed == {0: 0, 1: 0, 60: 28, 100: 92, 156: 124}[tiles]
    assert [path.rpartition("/")[2] for path, _ in built.left_out] == ["02.png"]


def test_a_build_killed_with_two_workers_resumes(source, whole, tmp_path):
    """kill -9 once a shard is complete; the workers end, too."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from moco_accel.imagery.cli import main; main()", "build", str(source), str(out)]
    command += ["--tile-size", "100", "--max-shard-mb", "1", "--labels-from-folders", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / ".build/state.npz").exists():
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=30)  # returns when the last worker has closed its end
    assert process.returncode == -signal.SIGKILL
    assert not (out / "__moco__/tiles.json").exists()
    built = build(source, out, workers=2, **OPTIONS)
    assert 28 <= built.num_resumed < 156
    assert file_contents(out) == whole


def test_a_build_killed_while_it_publishes_resumes(source, whole, tmp_path, monkeypatch):
    """Some shards are renamed by then, some are not."""
    out = tmp_path / "out"
    real, moved = type(out).replace, []

    def die_after_two(path, target):
        if path.name.startswith("shard-") and path.suffix == ".parquet":
            moved.append(path)
            if len(moved) == 3:
                raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(type(out), "replace", die_after_two)
    with pytest.raises(KeyboardInterrupt):
        build(source, out, **OPTIONS)
    monkeypatch.undo()
    assert len(list(out.glob("tiles-*"))) == 2
    assert build(source, out, **OPTIONS).num_resumed == 156
    assert file_contents(out) == whole


def test_other_options_on_an_unfinished_or_finished_build_are_errors(source, tmp_path):
    out = tmp_path / "out"
    interrupt_build(source, out, 60, **OPTIONS)
    with pytest.raises(UserError) as caught:
        build(source, out, **OPTIONS | {"tile_size": 50, "max_cloud": 0.2})
    assert str(caught.value) == (
        f"OUT={str(out)!r} holds a build begun with --tile-size=100, not with "
        f"--tile-size=50; choose another folder, or pass --overwrite"
    )
    build(source, out, **OPTIONS)
    with pytest.raises(UserError, match="holds tiles built without --bands, not with --bands=red; choose another"):
        build(source, out, **OPTIONS | {"bands": ("red",)})
    assert build(source, out, **OPTIONS).found_complete
    again = build(source, out, overwrite=True, **OPTIONS | {"bands": ("red",)})
    assert (again.found_complete, again.metadata.bands) == (False, ["red"])


def test_changed_files_are_detected(tmp_path):
    save_picture(tmp_path / "src/a.png", 32, 32)
    build(tmp_path / "src", tmp_path / "out")
    save_picture(tmp_path / "src/b.png", 32, 32)
    with pytest.raises(UserError, match="holds tiles built from files that have changed since; choose another folder"):
        build(tmp_path / "src", tmp_path / "out")


def test_overwrite_keeps_old_shards_until_new_ones_are_complete(source, whole, tmp_path):
    out = tmp_path / "out"
    save_picture(tmp_path / "other/a.png", 32, 32)
    build(tmp_path / "other", out)
    old = file_contents(out)
    interrupt_build(source, out, 60, overwrite=True, **OPTIONS)
    assert file_contents(out) == old
    build(source, out, overwrite=True, **OPTIONS)
    assert file_contents(out) == whole


def test_shards_of_other_origin_are_never_replaced(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-00000.parquet").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds other shards \(train-00000.parquet"):
        build(source, out, overwrite=True, **OPTIONS)


def test_a_second_build_in_the_same_folder_is_refused(source, tmp_path):
    out = tmp_path / "out"

    def second(stage, done, total, kept):
        if stage == "windows":
            with pytest.raises(UserError, match="is being written by another build"):
                build(source, out, **OPTIONS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, out, on_progress=second, **OPTIONS)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits on file sizes")
def test_a_full_disk_is_an_error_of_one_line_and_keeps_complete_shards(source, whole, tmp_path):
    """A limit on the size of files simulates it: the first shard fits, the next does not."""
    out = tmp_path / "out"
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, 900_000))\n"
        "from moco_accel.imagery.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "build", str(source), str(out), "--workers", "1"]
    done = subprocess.run(
        [*command, "--tile-size", "100", "--max-shard-mb", "1", "--labels-from-folders"], capture_output=True, text=True
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"error: OUT={str(out)!r} cannot be written (File too large); complete shards are kept (1), "
    )
    assert last.endswith("the same command resumes from them once this is fixed")
    assert not list((out / ".build").glob("*.partial"))
    build(source, out, **OPTIONS)
    assert file_contents(out) == whole


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the workers in /proc")
def test_a_killed_worker_is_an_error_of_one_line(source, tmp_path, monkeypatch):
    def kill_a_worker(stage, done, total, kept):
        if stage == "windows" and kept:
            children = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True
            ).stdout.split()
            for child in children:
                if "spawn_main" in read_command(child):
                    os.kill(int(child), signal.SIGKILL)

    def read_command(pid):
        path = Path(f"/proc/{pid}/cmdline")
        return path.read_text() if path.exists() else ""

    with pytest.raises(UserError, match="a worker was killed, most often because memory ran out; --workers 1"):
        build_tiles(source, tmp_path / "out", BuildOptions(**OPTIONS), 2, False, kill_a_worker)


def test_the_fingerprint_of_a_scene_does_not_change_between_versions():
    """decided.json stores its digest; another text would refuse builds that an earlier version began."""
    scene = Scene("a", (Path("a.tif"),), ("B4", "B3", "B2"), "sentinel2", False, 400)
    grid = Grid(32, 64, "EPSG:32618", (10.0, 0.0, 500.0, 0.0, -10.0, 900.0))
    layout = Layout(scene, ("B4", "B3", "B2"), "uint16", grid, nodata=(0.0, None, None))
    assert _fingerprint(layout) == (
        "('a', (('B4', 'B3', 'B2'), 'uint16', 0), "
        "Grid(height=32, width=64, crs='EPSG:32618', transform=(10.0, 0.0, 500.0, 0.0, -10.0, 900.0)), "
        "(0.0, None, None), CloudRule(bands=(0, 1, 2), above=4500, spread=1000))"
    )
