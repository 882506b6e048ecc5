import subprocess
import sys
import time

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.builds import build, cli, save
from support.geo_files import facts_of, rows_of, save_raster

from moco_accel.common.errors import UserError
from moco_accel.sources.tile_facts import SCHEMA_KEY, facts_from_json


def test_windows_of_a_scene(tmp_path):
    scene = save(tmp_path / "scene.tif", 70, 50)
    heard = []
    built = build(
        tmp_path / "scene.tif", tmp_path / "out", tile_size=32, stride=16, on_progress=lambda *a: heard.append(a)
    )
    # rows 0, 16, 32 (48 + 32 > 70), columns 0, 16 (32 + 32 > 50)
    assert (built.num_scenes, built.num_tiles, built.left_out) == (1, 6, [])
    assert heard == [("scenes", 1, 1, 0), ("windows", 0, 6, 0), ("windows", 6, 6, 6)]
    rows = rows_of(tmp_path / "out")
    assert [(row["row"], row["col"]) for row in rows] == [(0, 0), (0, 16), (16, 0), (16, 16), (32, 0), (32, 16)]
    for row in rows:
        window = scene[row["row"] : row["row"] + 32, row["col"] : row["col"] + 32]
        assert np.array_equal(row["image"], window.transpose(2, 0, 1))
        assert (row["path"], row["scene"], row["crs"], row["bounds"]) == ("scene.tif", "scene.tif", None, None)


def test_facts_and_statistics_lie_with_the_shards(tmp_path):
    scene = save(tmp_path / "scene.png", 64, 64).transpose(2, 0, 1)
    build(tmp_path / "scene.png", tmp_path / "out", tile_size=32)
    facts = facts_of(tmp_path / "out")
    assert (facts["bands"], facts["dtype"], facts["sensor"]) == (["red", "green", "blue"], "uint8", None)
    assert facts["statistics"]["mean"] == pytest.approx(scene.mean(axis=(1, 2)), rel=1e-12)
    assert facts["statistics"]["std"] == pytest.approx(scene.std(axis=(1, 2)), rel=1e-9)
    assert facts["statistics"]["pixels"] == [64 * 64] * 3
    schema = pq.read_schema(tmp_path / "out/tiles-00000-of-00001.parquet")
    assert facts_from_json(schema.metadata[SCHEMA_KEY]).bands == ["red", "green", "blue"]


def test_datasets_reads_the_shards_with_their_features(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    scene = save(tmp_path / "src/sea/scene.png", 32, 64)
    build(tmp_path / "src", tmp_path / "out", tile_size=32, labels_from_folders=True)
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "out/*.parquet"), split="train")
    assert loaded.features["image"] == datasets.Image()
    assert loaded.features["label"] == datasets.ClassLabel(names=["sea"])
    assert loaded.features["bounds"] == datasets.List(datasets.Value("float64"))
    assert np.array_equal(np.asarray(loaded[1]["image"]), scene[:, 32:])


def test_labels_from_folders_searched_throughout(tmp_path):
    save(tmp_path / "src/forest/a/1.png", 32, 32)
    save(tmp_path / "src/forest/2.PNG", 32, 64)
    save(tmp_path / "src/crop/3.jpg", 32, 32)
    (tmp_path / "src/readme.txt").write_text("no image")
    built = build(tmp_path / "src", tmp_path / "out", tile_size=32, labels_from_folders=True)
    assert built.tiles_per_class == {"crop": 1, "forest": 3}
    rows = rows_of(tmp_path / "out")
    assert [row["label"] for row in rows] == [0, 1, 1, 1]
    assert [row["path"] for row in rows] == ["crop/3.jpg", "forest/2.PNG", "forest/2.PNG", "forest/a/1.png"]


def test_whole_images_keep_their_bytes(tmp_path):
    """Encoding a JPEG again would lose quality, and time."""
    save(tmp_path / "src/small.jpg", 20, 30, quality=50)
    build(tmp_path / "src", tmp_path / "out", tile_size=32)
    table = pq.read_table(tmp_path / "out/tiles-00000-of-00001.parquet")
    assert table["image"][0].as_py()["bytes"] == (tmp_path / "src/small.jpg").read_bytes()


def test_a_side_shorter_than_the_tile_is_kept_whole(tmp_path):
    save(tmp_path / "strip.png", 20, 70)
    build(tmp_path / "strip.png", tmp_path / "out", tile_size=32)
    assert [row["image"].shape for row in rows_of(tmp_path / "out")] == [(3, 20, 32), (3, 20, 32)]


def test_grey_imagery_has_one_band(tmp_path):
    array = save(tmp_path / "src/a.tif", 32, 32, bands=1)
    assert build(tmp_path / "src", tmp_path / "out", tile_size=32).facts.bands == ["grey"]
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], array[None])


def test_pictures_too_large_to_decode_whole_are_read_in_windows(tmp_path, monkeypatch):
    monkeypatch.setattr("moco_accel.scenes.pictures.MAX_PICTURE_PIXELS", 4000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # twice that is an error of Pillow's
    scene = save(tmp_path / "scene.png", 64, 64).transpose(2, 0, 1)
    assert build(tmp_path / "scene.png", tmp_path / "out", tile_size=32).num_tiles == 4
    assert np.array_equal(rows_of(tmp_path / "out")[3]["image"], scene[:, 32:, 32:])
    assert Image.MAX_IMAGE_PIXELS == 1500


def test_the_bands_of_pictures_can_be_chosen_and_named(tmp_path):
    scene = save(tmp_path / "scene.png", 32, 32).transpose(2, 0, 1)
    build(tmp_path / "scene.png", tmp_path / "out", bands=("B", "r"))
    assert facts_of(tmp_path / "out")["bands"] == ["blue", "red"]
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], scene[[2, 0]])
    build(tmp_path / "scene.png", tmp_path / "infrared", band_names=("nir", "red", "green"), bands=("green", "nir"))
    assert np.array_equal(rows_of(tmp_path / "infrared")[0]["image"], scene[[2, 0]])


def test_the_number_of_workers_changes_nothing(tmp_path):
    """Shards come out the same to the byte."""
    for number in range(20):
        save(tmp_path / f"src/{number:02d}.png", 200, 200, seed=number)
    one = build(tmp_path / "src", tmp_path / "one", tile_size=100, max_shard_mb=1)
    two = build(tmp_path / "src", tmp_path / "two", tile_size=100, max_shard_mb=1, workers=2)
    assert one.num_tiles == two.num_tiles == 80
    names = [f"tiles-{index:05d}-of-00003.parquet" for index in range(3)]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["build.json", *names, "tiles.json"]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert path.stat().st_size <= 1 << 20


def test_errors_are_one_line_that_helps(tmp_path):
    def message(source, **kwargs):
        with pytest.raises(UserError) as caught:
            build(source, tmp_path / "out", **kwargs)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out/.build").exists()
        return str(caught.value)

    src = tmp_path / "src"
    assert message(src) == f"SRC={str(src)!r} does not exist; a folder of images or one image works"
    src.mkdir()
    assert message(src).endswith("holds no images; files ending in .jpg, .jpeg, .png, .tif, .tiff, .jp2 work")
    (src / "a.jpg").write_text("x")
    assert message(src).startswith(f"none of the 1 images in {str(src)!r} makes a tile; {src}/a.jpg: cannot be")
    save(src / "a.jpg", 32, 32)
    assert "lies in no class folder" in message(src, labels_from_folders=True)
    assert message(src, tile_size=4).startswith("--tile-size=4 must be at least 8; --tile-size 224 works")
    assert message(src, stride=0).startswith("--stride=0 must be at least 1; --stride 224 works")
    assert message(src, max_cloud=2.0) == "--max-cloud=2.0 is no share from 0 to 1; --max-cloud 0.5 works"
    assert "B4 is not there" in message(src, bands=("red", "B4"))
    Image.new("RGB", (32, 32), (250, 250, 250)).save(src / "a.jpg")
    assert message(src) == ("none of 1 windows was kept (cloud white: 1); --max-cloud 1 keeps them")


def test_pictures_need_no_rasterio_and_rasters_say_so(tmp_path, monkeypatch):
    save(tmp_path / "src/a.png", 32, 32)
    save(tmp_path / "src/b.tif", 32, 32)
    save_raster(tmp_path / "geo/a.tif", np.zeros((3, 32, 32), np.uint8))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert build(tmp_path / "src", tmp_path / "out").num_tiles == 2
    with pytest.raises(UserError, match=r"need rasterio, which is absent; pip install 'moco-accel\[geo\]'"):
        build(tmp_path / "geo", tmp_path / "none")


def test_command_line(tmp_path):
    save(tmp_path / "src/sea/a.png", 64, 64)
    (tmp_path / "src/sea/b.png").write_text("x")
    out = tmp_path / "out"
    result = cli("build", tmp_path / "src", out, "--tile-size", 32, "--labels-from-folders")
    assert (result.exit_code, result.stdout) == (0, "")
    text = " ".join(result.stderr.split())
    assert text.startswith(f"looking for scenes in {tmp_path / 'src'}")
    assert "tiles kept │ 4" in text
    assert "left out (1):" in text
    assert f"--set data.source={out} --set encoder.bands=3" in text
    again = cli("build", tmp_path / "src", out, "--tile-size", 32, "--labels-from-folders")
    assert again.exit_code == 0
    assert "is complete" in again.stderr
    other = cli("build", tmp_path / "src", out, "--tile-size", 64, "--labels-from-folders")
    assert other.exit_code == 2
    assert "holds tiles built with --tile-size=32, not with --tile-size=64" in other.stderr
    assert cli("build", tmp_path / "src", out, "--tile-size", 64, "--overwrite").exit_code == 0
    assert len(rows_of(out)) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    full = cli("build", tmp_path / "src", tmp_path / "mine")
    assert full.exit_code == 2
    assert "is not empty; choose another folder, or pass --overwrite" in full.stderr
    assert cli("build", tmp_path / "nowhere", tmp_path / "other").exit_code == 2
    assert cli("build").exit_code == 2
    for option in ("--bands", "--band-names"):
        named = cli("build", tmp_path / "src", tmp_path / "other", option, "red,")
        assert named.exit_code == 2
        assert f"{option}='red,' has an empty name; names with a comma between them work, e.g. B8,B4,B3" in " ".join(
            named.stderr.split()
        )
    beside = cli("demo", tmp_path / "mine")
    assert (beside.exit_code, "is not empty; choose another folder" in beside.stderr) == (2, True)
    for command in ((), ("build",), ("demo",)):
        assert "Example: moco-data" in cli(*command, "--help").stdout


def test_help_comes_at_once():
    """Torch and datasets take seconds to import; help needs neither."""
    code = "import sys, moco_accel.imagery.cli, moco_accel.eval_cli; print({'torch', 'datasets'} & set(sys.modules))"
    started = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
    assert time.perf_counter() - started < 5  # 0.4 s when nothing else runs
