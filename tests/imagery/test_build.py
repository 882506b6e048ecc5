"""moco-data build: windows, metadata and statistics, labels from folders, workers, errors and the command line."""

import subprocess
import sys
import time

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.builds import build, file_contents, run_moco_data, save_picture
from support.geo_files import facts_of, rows_of, save_raster

from moco_accel.common.errors import UserError
from moco_accel.sources.tile_metadata import SCHEMA_KEY, metadata_from_json


def test_windows_of_a_scene(tmp_path):
    scene = save_picture(tmp_path / "scene.tif", 70, 50)
    calls = []
    built = build(
        tmp_path / "scene.tif", tmp_path / "out", tile_size=32, stride=16, on_progress=lambda *a: calls.append(a)
    )
    # rows 0, 16, 32 (48 + 32 > 70), columns 0, 16 (32 + 32 > 50)
    assert (built.num_scenes, built.num_tiles, built.left_out) == (1, 6, [])
    assert calls == [("scenes", 1, 1, 0), ("windows", 0, 6, 0), ("windows", 6, 6, 6)]
    rows = rows_of(tmp_path / "out")
    assert [(row["row"], row["col"]) for row in rows] == [(0, 0), (0, 16), (16, 0), (16, 16), (32, 0), (32, 16)]
    for row in rows:
        window = scene[row["row"] : row["row"] + 32, row["col"] : row["col"] + 32]
        assert np.array_equal(row["image"], window.transpose(2, 0, 1))
        assert (row["path"], row["scene"], row["crs"], row["bounds"]) == ("scene.tif", "scene.tif", None, None)


def test_metadata_and_statistics_are_stored_with_the_shards(tmp_path):
    scene = save_picture(tmp_path / "scene.png", 64, 64).transpose(2, 0, 1)
    build(tmp_path / "scene.png", tmp_path / "out", tile_size=32)
    metadata = facts_of(tmp_path / "out")
    assert (metadata["bands"], metadata["dtype"], metadata["sensor"]) == (["red", "green", "blue"], "uint8", None)
    assert metadata["statistics"]["mean"] == pytest.approx(scene.mean(axis=(1, 2)), rel=1e-12)
    assert metadata["statistics"]["std"] == pytest.approx(scene.std(axis=(1, 2)), rel=1e-9)
    assert metadata["statistics"]["pixels"] == [64 * 64] * 3
    schema = pq.read_schema(tmp_path / "out/tiles-00000-of-00001.parquet")
    assert metadata_from_json(schema.metadata[SCHEMA_KEY]).bands == ["red", "green", "blue"]


def test_datasets_loads_the_shards_with_their_features(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    scene = save_picture(tmp_path / "src/sea/scene.png", 32, 64)
    build(tmp_path / "src", tmp_path / "out", tile_size=32, labels_from_folders=True)
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "out/*.parquet"), split="train")
    assert loaded.features["image"] == datasets.Image()
    assert loaded.features["label"] == datasets.ClassLabel(names=["sea"])
    assert loaded.features["bounds"] == datasets.List(datasets.Value("float64"))
    assert np.array_equal(np.asarray(loaded[1]["image"]), scene[:, 32:])


def test_labels_from_folders_in_all_subfolders(tmp_path):
    save_picture(tmp_path / "src/forest/a/1.png", 32, 32)
    save_picture(tmp_path / "src/forest/2.PNG", 32, 64)
    save_picture(tmp_path / "src/crop/3.jpg", 32, 32)
    (tmp_path / "src/readme.txt").write_text("no image")
    built = build(tmp_path / "src", tmp_path / "out", tile_size=32, labels_from_folders=True)
    assert built.tiles_per_class == {"crop": 1, "forest": 3}
    rows = rows_of(tmp_path / "out")
    assert [row["label"] for row in rows] == [0, 1, 1, 1]
    assert [row["path"] for row in rows] == ["crop/3.jpg", "forest/2.PNG", "forest/2.PNG", "forest/a/1.png"]


def test_an_image_kept_whole_keeps_its_bytes(tmp_path):
    """Encoding a JPEG again would lose quality and time."""
    save_picture(tmp_path / "src/small.jpg", 20, 30, quality=50)
    build(tmp_path / "src", tmp_path / "out", tile_size=32)
    table = pq.read_table(tmp_path / "out/tiles-00000-of-00001.parquet")
    assert table["image"][0].as_py()["bytes"] == (tmp_path / "src/small.jpg").read_bytes()


def test_an_image_side_shorter_than_the_tile_is_kept_whole(tmp_path):
    save_picture(tmp_path / "strip.png", 20, 70)
    build(tmp_path / "strip.png", tmp_path / "out", tile_size=32)
    assert [row["image"].shape for row in rows_of(tmp_path / "out")] == [(3, 20, 32), (3, 20, 32)]


def test_grey_imagery_has_one_band(tmp_path):
    array = save_picture(tmp_path / "src/a.tif", 32, 32, bands=1)
    assert build(tmp_path / "src", tmp_path / "out", tile_size=32).metadata.bands == ["grey"]
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], array[None])


def test_pictures_too_large_to_decode_at_once_are_read_in_windows(tmp_path, monkeypatch):
    monkeypatch.setattr("moco_accel.scenes.image_files.MAX_PICTURE_PIXELS", 4000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # Pillow raises an error at twice this
    scene = save_picture(tmp_path / "scene.png", 64, 64).transpose(2, 0, 1)
    assert build(tmp_path / "scene.png", tmp_path / "out", tile_size=32).num_tiles == 4
    assert np.array_equal(rows_of(tmp_path / "out")[3]["image"], scene[:, 32:, 32:])
    assert Image.MAX_IMAGE_PIXELS == 1500


def test_the_bands_of_pictures_can_be_chosen_and_named(tmp_path):
    scene = save_picture(tmp_path / "scene.png", 32, 32).transpose(2, 0, 1)
    build(tmp_path / "scene.png", tmp_path / "out", bands=("B", "r"))
    assert facts_of(tmp_path / "out")["bands"] == ["blue", "red"]
    assert np.array_equal(rows_of(tmp_path / "out")[0]["image"], scene[[2, 0]])
    build(tmp_path / "scene.png", tmp_path / "infrared", band_names=("nir", "red", "green"), bands=("green", "nir"))
    assert np.array_equal(rows_of(tmp_path / "infrared")[0]["image"], scene[[2, 0]])


def test_shards_do_not_depend_on_the_number_of_workers(tmp_path):
    """They are byte-identical."""
    for number in range(20):
        save_picture(tmp_path / f"src/{number:02d}.png", 200, 200, seed=number)
    one = build(tmp_path / "src", tmp_path / "one", tile_size=100, max_shard_mb=1)
    two = build(tmp_path / "src", tmp_path / "two", tile_size=100, max_shard_mb=1, workers=2)
    assert one.num_tiles == two.num_tiles == 80
    names = [f"tiles-{index:05d}-of-00003.parquet" for index in range(3)]
    files, others = file_contents(tmp_path / "one"), file_contents(tmp_path / "two")
    assert sorted(files) == ["__moco__/build.json", "__moco__/tiles.json", *names]
    assert files == others
    assert max(map(len, files.values())) <= 1 << 20


def test_errors_name_the_option_and_a_value_that_works(tmp_path, build_error):
    src = tmp_path / "src"
    assert build_error(src) == f"SRC={str(src)!r} does not exist; a folder of images or one image works"
    src.mkdir()
    assert build_error(src).endswith("holds no images; files ending in .jpg, .jpeg, .png, .tif, .tiff, .jp2 work")
    (src / "a.jpg").write_text("x")
    assert build_error(src).startswith(f"none of the 1 images in {str(src)!r} yields a tile; {src}/a.jpg: cannot be")
    save_picture(src / "a.jpg", 32, 32)
    assert "is not in a class folder" in build_error(src, labels_from_folders=True)
    assert build_error(src, tile_size=4).startswith("--tile-size=4 must be at least 8; --tile-size 224 works")
    assert build_error(src, stride=0).startswith("--stride=0 must be at least 1; --stride 224 works")
    assert build_error(src, max_cloud=2.0) == "--max-cloud=2.0 is not a share from 0 to 1; --max-cloud 0.5 works"
    assert "B4 is not there" in build_error(src, bands=("red", "B4"))
    Image.new("RGB", (32, 32), (250, 250, 250)).save(src / "a.jpg")
    assert build_error(src) == ("none of 1 windows was kept (cloud white: 1); --max-cloud 1 keeps them")


def test_only_rasters_need_rasterio(tmp_path, monkeypatch):
    save_picture(tmp_path / "src/a.png", 32, 32)
    save_picture(tmp_path / "src/b.tif", 32, 32)
    save_raster(tmp_path / "geo/a.tif", np.zeros((3, 32, 32), np.uint8))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert build(tmp_path / "src", tmp_path / "out").num_tiles == 2
    with pytest.raises(UserError, match=r"need rasterio; pip install 'moco-accel\[geo\]'"):
        build(tmp_path / "geo", tmp_path / "none")


def test_command_line_output_and_exit_codes(tmp_path):
    save_picture(tmp_path / "src/sea/a.png", 64, 64)
    (tmp_path / "src/sea/b.png").write_text("x")
    out = tmp_path / "out"
    result = run_moco_data("build", tmp_path / "src", out, "--tile-size", 32, "--labels-from-folders")
    assert (result.exit_code, result.stdout) == (0, "")
    text = " ".join(result.stderr.split())
    assert text.startswith(f"searching for scenes in {tmp_path / 'src'}")
    assert "tiles kept │ 4" in text
    assert "left out (1):" in text
    assert f"--set data.source={out} --set encoder.bands=3" in text
    again = run_moco_data("build", tmp_path / "src", out, "--tile-size", 32, "--labels-from-folders")
    assert again.exit_code == 0
    assert "is complete" in again.stderr
    other = run_moco_data("build", tmp_path / "src", out, "--tile-size", 64, "--labels-from-folders")
    assert other.exit_code == 2
    assert "holds tiles built with --tile-size=32, not with --tile-size=64" in other.stderr
    assert run_moco_data("build", tmp_path / "src", out, "--tile-size", 64, "--overwrite").exit_code == 0
    assert len(rows_of(out)) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    full = run_moco_data("build", tmp_path / "src", tmp_path / "mine")
    assert full.exit_code == 2
    assert "is not empty; choose another folder, or pass --overwrite" in full.stderr
    assert run_moco_data("build", tmp_path / "nowhere", tmp_path / "other").exit_code == 2
    assert run_moco_data("build").exit_code == 2
    for option in ("--bands", "--band-names"):
        named = run_moco_data("build", tmp_path / "src", tmp_path / "other", option, "red,")
        assert named.exit_code == 2
        assert f"{option}='red,' has an empty name; names with a comma between them work, e.g. B8,B4,B3" in " ".join(
            named.stderr.split()
        )
    beside = run_moco_data("demo", tmp_path / "mine")
    assert (beside.exit_code, "is not empty; choose another folder" in beside.stderr) == (2, True)
    for command in ((), ("build",), ("demo",)):
        assert "Example: moco-data" in run_moco_data(*command, "--help").stdout


def test_help_imports_neither_torch_nor_datasets():
    """Both take seconds to import."""
    code = (
        "import sys, moco_accel.imagery.cli, moco_accel.evaluation.cli; print({'torch', 'datasets'} & set(sys.modules))"
    )
    started = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
    assert time.perf_counter() - started < 5  # 0.4 s on an idle machine
