"""moco-data inspect and preview on sources as they come: pairs, bands without names, odd labels, a full disk."""

from __future__ import annotations

import json
import resource

import datasets
import numpy as np
import pytest
import typer
from PIL import Image
from support.source_files import encoded, picture, pixels, put
from support.tile_files import SENTINEL2, npy, write_tiles

from moco_accel.common.drawing import font
from moco_accel.inspection.cli import register
from moco_accel.inspection.contact_sheet import write_sheet
from moco_accel.inspection.inspection import bytes_on_disk, inspect_tiles
from moco_accel.inspection.opening import open_unknown
from moco_accel.inspection.preview import preview_recipe, write_preview
from moco_accel.inspection.report import warnings_of
from moco_accel.inspection.sheets import in_two_lines, name_picture
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.shard_writer import write_shards
from moco_accel.tiles.tiles import open_tiles

SMALL = ["--tiles", "2", "--set", "encoder.image_size=32"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """As moco-data build --pair-with writes them."""
    folder = tmp_path_factory.mktemp("pairs")
    features = datasets.Features({"image": datasets.Image(), "image_pair": datasets.Image()})
    seasons = zip(pixels(4, 16, seed=1), pixels(4, 16, seed=2), strict=True)
    write_shards([{"image": encoded(a), "image_pair": encoded(b)} for a, b in seasons], features, folder)
    return folder


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory):
    """Thirteen bands of 16 bits whose names no one stored."""
    tiles = np.random.default_rng(0).integers(0, 9000, (4, 13, 32, 32)).astype(np.uint16)
    return write_tiles(tmp_path_factory.mktemp("unnamed"), list(tiles))


def run(*arguments):
    app = typer.Typer()
    register(app)
    return app(list(map(str, arguments)), standalone_mode=False)


def refused(capfd, *arguments):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    return line


def inspected(capfd, *arguments):
    capfd.readouterr()
    run("inspect", *arguments, "--json")
    return json.loads(capfd.readouterr().out)


def test_pairs_of_our_own(pairs, tmp_path, capfd):
    fields = inspected(capfd, pairs)
    assert (fields["image_column"], fields["columns"]) == ("image", ["image", "image_pair"])
    assert fields["recipe"]["data"]["pair_column"] == "image_pair"
    assert fields["recipe"]["augment"] == {"preset": "seasons"}
    run("preview", pairs, tmp_path / "v.png", "--set", "data.pair_column=image_pair", *SMALL)
    with Image.open(tmp_path / "v.png") as shown:
        assert shown.width == 2 * 28 + 4 * 224 + 3 * 10  # tile, other season, both views


def test_pairs_of_other_names(tmp_path, capfd):
    seasons = [npy(tile) for tile in np.zeros((3, 3, 32, 32), np.uint8)]
    source = write_tiles(
        tmp_path / "t", np.zeros((3, 3, 32, 32), np.uint8), columns={"later": (datasets.Value("binary"), seasons)}
    )
    out = tmp_path / "v.png"
    run("preview", source, out, "--set", "data.pair_column=later", *SMALL)
    capfd.readouterr()
    assert "(image, later); --set data.image_column=image works" in refused(capfd, "preview", source, out, *SMALL)
    assert f"--set data.pair_column=latr is no second column of imagery of '{source}' (image, later)" in refused(
        capfd, "preview", source, out, "--set", "data.pair_column=latr", *SMALL
    )


def test_bands_without_names_are_named_for_inspect(unnamed, capfd):
    fields = inspected(capfd, unnamed, "--band-names", ",".join(SENTINEL2), "--bands", "B8,b04")
    assert [band["name"] for band in fields["bands"]] == ["B8", "B4"]
    assert fields["recipe"]["data"]["stored_bands"] == SENTINEL2
    assert fields["recipe"]["data"]["bands"] == ["B8", "B4"]
    assert refused(capfd, "inspect", unnamed, "--bands", "B8,B4").endswith(
        f"name all 13, in their order: --band-names={','.join(SENTINEL2)} if they are Sentinel-2's"
    )
    assert "--band-names=B8,B4 names 2 bands" in refused(capfd, "inspect", unnamed, "--band-names", "B8,B4")


@pytest.mark.parametrize("named", [["--band-names", ",".join(SENTINEL2), "--bands", "B8,B4"], []])
def test_the_lines_for_a_recipe_are_those_that_training_takes(unnamed, capfd, named):
    """Those of unnamed bands with what they say is to add."""
    run("inspect", unnamed, *named)
    said = capfd.readouterr().err
    recipe = inspected(capfd, unnamed, *named)["recipe"]
    added = f"to add to data: stored_bands, the names of all 13 bands in their order, e.g. [{', '.join(SENTINEL2)}]"
    assert (added in said) == (not named)
    to_add = {} if named else {"stored_bands": SENTINEL2}
    tiles = open_tiles(str(unnamed), Data(**recipe["data"], **to_add), recipe["encoder"]["bands"])
    assert tiles.bands == (["B8", "B4"] if named else SENTINEL2)


def test_a_preview_of_bands_without_names(unnamed, tmp_path, capfd):
    out = tmp_path / "v.png"
    line = refused(capfd, "preview", unnamed, out, *SMALL)
    listed = "[" + ", ".join(SENTINEL2) + "]"
    assert f"--set 'data.stored_bands={listed}' if they are Sentinel-2's" in line
    some = ["--set", f"data.stored_bands={listed}", "--set", "data.bands=[B8, B4, B3]"]
    run("preview", unnamed, out, *some, *SMALL)
    recipe = preview_recipe(str(unnamed), None, some[1::2])
    assert (recipe.encoder.bands, recipe.data.bands) == (3, ["B8", "B4", "B3"])
    assert "--set data.bands=3: input should be a valid list" in refused(
        capfd, "preview", unnamed, out, "--set", "data.bands=3"
    )


def test_a_label_that_is_no_class_keeps_no_one_from_looking(tmp_path, capfd):
    tiles = [np.full((3, 8, 8), value, np.uint8) for value in range(3)]
    for kind, values, why in (
        ("float32", [0.5, 1.5, 2.5], "is Value('float32'), not ClassLabel or integers"),
        ("int64", [5, 10**12, 7], "would have 1,000,000,000,001 classes"),
    ):
        source = write_tiles(tmp_path / kind, tiles, columns={"label": (datasets.Value(kind), values)})
        fields = inspected(capfd, source, "--sheet", tmp_path / kind / "sheet.png")
        assert fields["labels"] is None
        (warning,) = [text for text in fields["warnings"] if text.startswith("no classes: ")]
        assert why in warning
        assert (tmp_path / kind / "sheet.png").is_file()


def test_grey_pictures_among_coloured_ones(tmp_path):
    """As training reads them: the first one decides nothing."""
    for index, array in enumerate(pixels(64)):
        put(tmp_path / f"{index:02}.png", picture(array[:, :, 0] if index in (0, 20, 40) else array))
    found = inspect_tiles(open_unknown(str(tmp_path)), 0)
    assert (found.measured.damaged, found.bands) == ([], ["red", "green", "blue"])
    assert found.sizes == [((8, 8), 64)]
    assert warnings_of(found) == []


def test_a_full_disk_leaves_nothing_half_written(pairs, tmp_path):
    recipe = preview_recipe(str(pairs), None, ["encoder.image_size=32", "data.num_workers=0"])
    tiles = open_unknown(str(pairs))
    found = inspect_tiles(tiles, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        for draw in (
            lambda: write_preview(tmp_path / "x.png", recipe, 2),
            lambda: write_sheet(tmp_path / "x.png", tiles, found),
        ):
            with pytest.raises(OSError, match="File too large"):
                draw()
            assert list(tmp_path.iterdir()) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_names_of_odd_folders_are_printed_as_they_are(pairs, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "odd [out] 'é' [red]"
    (tmp_path / source).symlink_to(pairs)
    run("inspect", source, "--sheet", "s [out].png")
    run("preview", source, "v [out].png", *SMALL)
    said = capfd.readouterr().err
    for text in (source, "contact sheet: s [out].png", "views: v [out].png"):
        assert text in said
    assert bytes_on_disk(f"{source}/*.parquet") == next(pairs.glob("*.parquet")).stat().st_size


def test_a_band_shown_as_grey_is_named_once():
    assert name_picture((0, 0, 0), ["elevation"]) == "elevation"
    assert name_picture((2, 1, 0), ["B2", "B3", "B4"]) == "B4, B3, B2"


def test_a_subtitle_takes_two_lines_where_one_does_not_hold_it():
    text = "of 1,000 tiles; views of 224 x 224 pixels, augment.preset=satellite, noise 0.01, data.scaling=percentiles"
    assert in_two_lines(text, 5000) == [text]
    lines = in_two_lines(text, 500)
    assert " ".join(lines) == text
    assert [font(13).getlength(line) <= 500 for line in lines] == [True, True]
    assert in_two_lines("word", 1) == ["word"]
