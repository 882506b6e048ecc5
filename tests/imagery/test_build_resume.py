import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.builds import OPTIONS, build, contents, save, stop_at

from moco_accel.common.errors import UserError
from moco_accel.imagery.build import build_tiles
from moco_accel.imagery.options import Options


@pytest.mark.parametrize("tiles", [0, 1, 60, 100, 156])
def test_a_stopped_build_goes_on_and_ends_the_same(source, whole, tmp_path, tiles):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build(source, out, on_progress=stop_at(tiles), **OPTIONS)
    assert [path.name for path in out.iterdir()] == [".build"]
    built = build(source, out, **OPTIONS)
    assert contents(out) == whole
    assert built.num_tiles == 156
    assert built.num_resumed == {0: 0, 1: 0, 60: 28, 100: 92, 156: 124}[tiles]
    assert [path.rpartition("/")[2] for path, _ in built.left_out] == ["02.png"]


def test_killed_with_two_workers(source, whole, tmp_path):
    """kill -9 as soon as a shard is whole; the workers go too, and nothing is left over."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from moco_accel.imagery.cli import main; main()", "build", str(source), str(out)]
    command += ["--tile-size", "100", "--max-shard-mb", "1", "--labels-from-folders", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / ".build/state.npz").exists():
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=30)  # ends when the last worker has closed its end, too
    assert process.returncode == -signal.SIGKILL
    assert not (out / "tiles.json").exists()
    built = build(source, out, workers=2, **OPTIONS)
    assert 28 <= built.num_resumed < 156
    assert contents(out) == whole


def test_a_build_killed_while_it_publishes(source, whole, tmp_path, monkeypatch):
    """Some shards bear their names already, some do not."""
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
    assert contents(out) == whole


def test_other_options_on_a_begun_or_finished_build_are_an_error(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build(source, out, on_progress=stop_at(60), **OPTIONS)
    with pytest.raises(UserError) as caught:
        build(source, out, **OPTIONS | {"tile_size": 50, "max_cloud": 0.2})
    assert str(caught.value) == (
        f"OUT={str(out)!r} was begun with --tile-size=100, not with --tile-size=50; "
        f"choose another folder, or pass --overwrite"
    )
    build(source, out, **OPTIONS)
    with pytest.raises(UserError, match="holds tiles built without --bands, not with --bands=red; choose another"):
        build(source, out, **OPTIONS | {"bands": ("red",)})
    assert build(source, out, **OPTIONS).found_complete
    again = build(source, out, overwrite=True, **OPTIONS | {"bands": ("red",)})
    assert (again.found_complete, again.facts.bands) == (False, ["red"])


def test_changed_files_are_noticed(tmp_path):
    save(tmp_path / "src/a.png", 32, 32)
    build(tmp_path / "src", tmp_path / "out")
    save(tmp_path / "src/b.png", 32, 32)
    with pytest.raises(UserError, match="holds tiles built of files that have changed since; choose another folder"):
        build(tmp_path / "src", tmp_path / "out")


def test_overwrite_leaves_old_shards_until_new_ones_are_whole(source, whole, tmp_path):
    out = tmp_path / "out"
    save(tmp_path / "other/a.png", 32, 32)
    build(tmp_path / "other", out)
    old = contents(out)
    with pytest.raises(KeyboardInterrupt):
        build(source, out, overwrite=True, on_progress=stop_at(60), **OPTIONS)
    assert contents(out) == old
    build(source, out, overwrite=True, **OPTIONS)
    assert contents(out) == whole


def test_foreign_shards_are_never_replaced(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-00000.parquet").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds other shards \(train-00000.parquet"):
        build(source, out, overwrite=True, **OPTIONS)


def test_two_builds_in_one_folder_do_not_mix(source, tmp_path):
    out = tmp_path / "out"

    def second(stage, done, total, kept):
        if stage == "windows":
            with pytest.raises(UserError, match="is being written by another build"):
                build(source, out, **OPTIONS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, out, on_progress=second, **OPTIONS)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_a_full_disk_is_one_line_and_whole_shards_stay(source, whole, tmp_path):
    """A limit on the size of files stands for it: shards of less fit, the next one does not."""
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
    assert last.startswith(f"error: OUT={str(out)!r} cannot be written (File too large); whole shards stay (1), ")
    assert last.endswith("goes on from there once that is mended")
    assert not list((out / ".build").glob("*.partial"))
    build(source, out, **OPTIONS)
    assert contents(out) == whole


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the workers in /proc")
def test_a_killed_worker_is_one_line(source, tmp_path, monkeypatch):
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

    with pytest.raises(UserError, match="a worker was killed, most often for want of memory; --workers 1"):
        build_tiles(source, tmp_path / "out", Options(**OPTIONS), 2, False, kill_a_worker)
