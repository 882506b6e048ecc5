import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from moco_accel.imagery.build import build_tiles
from moco_accel.imagery.cli import app
from moco_accel.recipe_text import RecipeError
from moco_accel.shards import open_tiles


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def save(path, height, width, bands=3, seed=0, **kwargs):
    shape = (height, width, bands) if bands > 1 else (height, width)
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kwargs)
    return array


def cli(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_windows_of_a_scene(tmp_path):
    scene = save(tmp_path / "scene.tif", 70, 50)
    heard = []
    built = build_tiles(
        tmp_path / "scene.tif", tmp_path / "out", 32, stride=16, on_progress=lambda *done: heard.append(done)
    )
    # rows 0, 16, 32 (48 + 32 > 70), columns 0, 16 (32 + 32 > 50)
    assert (built.num_images, built.num_tiles, built.left_out) == (1, 6, [])
    assert sum(images for images, _ in heard) == pytest.approx(1)
    assert sum(tiles for _, tiles in heard) == 6
    tiles = open_tiles(str(tmp_path / "out"), "image", 3)
    corners = list(zip(tiles.column("row"), tiles.column("col"), strict=True))
    assert corners == [(0, 0), (0, 16), (16, 0), (16, 16), (32, 0), (32, 16)]
    for index, (row, col) in enumerate(corners):
        assert np.array_equal(tiles[index].numpy(), scene[row : row + 32, col : col + 32].transpose(2, 0, 1))


def test_labels_from_folders_searched_throughout(tmp_path):
    save(tmp_path / "src/forest/a/1.png", 32, 32)
    save(tmp_path / "src/forest/2.PNG", 32, 64)
    save(tmp_path / "src/crop/3.jpg", 32, 32)
    (tmp_path / "src/readme.txt").write_text("no image")
    built = build_tiles(tmp_path / "src", tmp_path / "out", 32, labels_from_folders=True)
    assert dict(built.tiles_per_class) == {"forest": 3, "crop": 1}
    tiles = open_tiles(str(tmp_path / "out"), "image", 3)
    assert tiles.label_names("label") == ["crop", "forest"]
    assert tiles.column("label") == [0, 1, 1, 1]
    assert tiles.column("path") == ["crop/3.jpg", "forest/2.PNG", "forest/2.PNG", "forest/a/1.png"]


def test_whole_images_keep_their_bytes(tmp_path):
    """Encoding a JPEG again would lose quality, and time."""
    save(tmp_path / "src/small.jpg", 20, 30, quality=50)
    build_tiles(tmp_path / "src", tmp_path / "out", 32)
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "out/*.parquet")).cast_column(
        "image", datasets.Image(decode=False)
    )
    assert loaded[0]["image"]["bytes"] == (tmp_path / "src/small.jpg").read_bytes()


def test_a_side_shorter_than_the_tile_is_kept_whole(tmp_path):
    save(tmp_path / "strip.png", 20, 70)
    build_tiles(tmp_path / "strip.png", tmp_path / "out", 32)
    tiles = open_tiles(str(tmp_path / "out"), "image", 3)
    assert [list(tiles[i].shape) for i in range(len(tiles))] == [[3, 20, 32], [3, 20, 32]]


def test_what_cannot_be_read_is_left_out_with_its_reason(tmp_path):
    src = tmp_path / "src"
    save(src / "a.png", 32, 32)
    save(src / "b_truncated.png", 32, 32)
    (src / "b_truncated.png").write_bytes((src / "b_truncated.png").read_bytes()[:1500])
    (src / "c_text.jpg").write_text("hello")
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(src / "d_16_bit.tif")
    save(src / "e_grey.png", 32, 32, bands=1)
    save(src / "f_transparent.png", 32, 32, bands=4)
    opaque = np.full((32, 32, 4), 255, np.uint8)
    Image.fromarray(opaque).save(src / "g_opaque.png")
    Image.new("P", (32, 32)).save(src / "h_palette.png")
    Image.new("CMYK", (32, 32)).save(src / "i_cmyk.jpg")
    built = build_tiles(src, tmp_path / "out", 32)
    reasons = {path.name: reason for path, reason in built.left_out}
    assert list(reasons) == [
        "b_truncated.png",
        "c_text.jpg",
        "d_16_bit.tif",
        "e_grey.png",
        "f_transparent.png",
        "i_cmyk.jpg",
    ]
    assert reasons["b_truncated.png"].startswith("is damaged (")
    assert reasons["c_text.jpg"].startswith("cannot be identified; 8-bit RGB and grey")
    assert reasons["d_16_bit.tif"].startswith("is of mode I;16; 8-bit RGB and grey")
    assert reasons["e_grey.png"] == "is grey, the images before it are colour; build them apart"
    assert reasons["f_transparent.png"] == "has transparent pixels; flatten it to RGB first"
    assert (built.num_images, built.num_tiles) == (3, 3)
    tiles = open_tiles(str(tmp_path / "out"), "image", 3)
    assert [int(tiles[i].float().mean()) for i in (1, 2)] == [255, 0]


def test_grey_imagery_has_one_band(tmp_path):
    array = save(tmp_path / "src/a.tif", 32, 32, bands=1)
    assert build_tiles(tmp_path / "src", tmp_path / "out", 32).mode == "L"
    assert np.array_equal(open_tiles(str(tmp_path / "out"), "image", 1)[0].numpy(), array[None])


def test_scenes_larger_than_pillows_limit_are_read_without_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # twice that is an error
    save(tmp_path / "scene.png", 64, 64)
    assert build_tiles(tmp_path / "scene.png", tmp_path / "out", 32).num_tiles == 4
    assert Image.MAX_IMAGE_PIXELS == 1500


def test_errors_are_one_line_that_helps(tmp_path):
    def message(source, **kwargs):
        with pytest.raises(RecipeError) as caught:
            build_tiles(source, tmp_path / "out", **kwargs)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    src = tmp_path / "src"
    assert message(src) == f"SRC={str(src)!r} does not exist; a folder of images or one image works"
    src.mkdir()
    assert message(src).endswith("holds no images; files ending in .jpg, .jpeg, .png, .tif, .tiff work")
    (src / "a.jpg").write_text("x")
    assert message(src).startswith(f"none of the 1 images in {str(src)!r} makes a tile; {src}/a.jpg: cannot be")
    assert "lies in no class folder" in message(src, labels_from_folders=True)
    assert message(src, tile_size=4).startswith("--tile-size=4 must be at least 8")
    assert message(src, stride=0).startswith("--stride=0 must be at least 1")


def test_command_line(tmp_path):
    save(tmp_path / "src/sea/a.png", 64, 64)
    (tmp_path / "src/sea/b.png").write_text("x")
    out = tmp_path / "out"
    result = cli("build", tmp_path / "src", out, "--tile-size", 32, "--labels-from-folders")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "4 tiles (RGB, encoder.bands=3) of 1 images" in result.stderr
    assert "1 images were left out" in result.stderr
    again = cli("build", tmp_path / "src", out)
    assert again.exit_code == 2
    assert "is not empty; choose another folder, or pass --overwrite" in again.stderr.replace("\n", " ")
    assert cli("build", tmp_path / "src", out, "--tile-size", 64, "--overwrite").exit_code == 0
    assert len(open_tiles(str(out), "image", 3)) == 1
    assert cli("build", tmp_path / "nowhere", tmp_path / "other").exit_code == 2
    assert cli("build").exit_code == 2
    for command in ((), ("build",), ("demo",)):
        assert "Example: moco-data" in cli(*command, "--help").stdout


def test_help_comes_at_once():
    """Torch and datasets take seconds to import; help needs neither."""
    code = "import sys, moco_accel.imagery.cli, moco_accel.eval_cli; print({'torch', 'datasets'} & set(sys.modules))"
    started = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
    assert time.perf_counter() - started < 5  # 0.4 s when nothing else runs
