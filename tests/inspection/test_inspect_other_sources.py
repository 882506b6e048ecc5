"""moco-data inspect and preview on unusual sources: pairs, bands without names, odd labels, a full disk."""

from __future__ import annotations

import json
import resource

import datasets
import numpy as np
import pytest
from PIL import Image
from support.builds import refused, run_command
from support.source_files import encode_image, image_value, random_pixels, write_file
from support.tile_files import SENTINEL2, npy, write_tiles

from moco_accel.common.drawing import load_font
from moco_accel.inspection.inspect_tiles import bytes_on_disk, inspect_tiles
from moco_accel.inspection.open_without_recipe import open_without_recipe
from moco_accel.inspection.picture_grid import channel_names, wrap_in_two, write_contact_sheet
from moco_accel.inspection.preview import preview_recipe, write_preview
from moco_accel.inspection.report import list_warnings
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.shard_writer import write_shards
from moco_accel.tiles.tiles import open_tiles

SMALL = ["--tiles", "2", "--set", "encoder.image_size=32"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """As moco-data build --pair-with writes them."""
    folder = tmp_path_factory.mktemp("pairs")
    features = datasets.Features({"image": datasets.Image(), "image_pair": datasets.Image()})
    seasons = zip(random_pixels(4, 16, seed=1), random_pixels(4, 16, seed=2), strict=True)
    write_shards([{"image": image_value(a), "image_pair": image_value(b)} for a, b in seasons], features, folder)
    return folder


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory):
    """Thirteen bands of 16 bits without stored names."""
    tiles = np.random.default_rng(0).integers(0, 9000, (4, 13, 32, 32)).astype(np.uint16)
    return write_tiles(tmp_path_factory.mktemp("unnamed"), list(tiles))


def inspected(capfd, *arguments):
    capfd.readouterr()
    run_command("inspect", *arguments, "--json")
    return json.loads(capfd.readouterr().out)


def test_built_pairs(pairs, tmp_path, capfd):
    fields = inspected(capfd, pairs)
    assert (fields["image_column"], fields["columns"]) == ("image", ["image", "image_pair"])
    assert fields["recipe"]["data"]["pair_column"] == "image_pair"
    assert fields["recipe"]["augment"] == {"preset": "seasons"}
    run_command("preview", pairs, tmp_path / "v.png", "--set", "data.pair_column=image_pair", *SMALL)
    with Image.open(tmp_path / "v.png") as shown:
        assert shown.width == 2 * 28 + 4 * 224 + 3 * 10  # tile, other season, both views


def test_pairs_with_other_column_names(tmp_path, capfd):
    seasons = [npy(tile) for tile in np.zeros((3, 3, 32, 32), np.uint8)]
    source = write_tiles(
        tmp_path / "t", np.zeros((3, 3, 32, 32), np.uint8), columns={"later": (datasets.Value("binary"), seasons)}
    )
    out = tmp_path / "v.png"
    run_command("preview", source, out, "--set", "data.pair_column=later", *SMALL)
    assert "(image, later); --set data.image_column=image works" in refused(capfd, "preview", source, out, *SMALL)
    assert f"--set data.pair_column=latr is not a second image column of '{source}' (image, later)" in refused(
        capfd, "preview", source, out, "--set", "data.pair_column=latr", *SMALL
    )


def test_band_names_option_of_inspect(unnamed, capfd):
    fields = inspected(capfd, unnamed, "--band-names", ",".join(SENTINEL2), "--bands", "B8,b04")
    assert [band["name"] for band in fields["bands"]] == ["B8", "B4"]
    assert fields["recipe"]["data"]["stored_bands"] == SENTINEL2
    assert fields["recipe"]["data"]["bands"] == ["B8", "B4"]
    assert (
        refused(capfd, "inspect", unnamed, "--bands", "B8,B4")
        .partition("name all 13, in their order: ")[2]
        .startswith(
            f"--band-names={','.join(SENTINEL2)} for Sentinel-2 level 1C, SEN12MS and SSL4EO-S12, or --band-names=B1,"
        )
    )
    assert "--band-names=B8,B4 names 2 bands" in refused(capfd, "inspect", unnamed, "--band-names", "B8,B4")


@pytest.mark.parametrize("named", [["--band-names", ",".join(SENTINEL2), "--bands", "B8,B4"], []])
def test_training_takes_the_printed_recipe_fields(unnamed, capfd, named):
    """For bands without names, together with the field that the output says to add."""
    run_command("inspect", unnamed, *named)
    printed = capfd.readouterr().err
    recipe = inspected(capfd, unnamed, *named)["recipe"]
    added = f"to add to data: stored_bands, the names of all 13 bands in their order, e.g. [{', '.join(SENTINEL2)}]"
    assert (added in printed) == (not named)
    to_add = {} if named else {"stored_bands": SENTINEL2}
    tiles = open_tiles(str(unnamed), Data(**recipe["data"], **to_add), recipe["encoder"]["bands"])
    assert tiles.bands == (["B8", "B4"] if named else SENTINEL2)


def test_a_preview_of_bands_without_names(unnamed, tmp_path, capfd):
    out = tmp_path / "v.png"
    line = refused(capfd, "preview", unnamed, out, *SMALL)
    listed = "[" + ", ".join(SENTINEL2) + "]"
    assert f"--set 'data.stored_bands={listed}' for Sentinel-2 level 1C" in line
    some = ["--set", f"data.stored_bands={listed}", "--set", "data.bands=[B8, B4, B3]"]
    run_command("preview", unnamed, out, *some, *SMALL)
    recipe = preview_recipe(str(unnamed), None, some[1::2])
    assert (recipe.encoder.bands, recipe.data.bands) == (3, ["B8", "B4", "B3"])
    assert "--set data.nodata=x: input should be a valid number" in refused(
        capfd, "preview", unnamed, out, "--set", "data.nodata=x"
    )


def test_a_label_column_without_classes_is_a_warning(tmp_path, capfd):
    tiles = [np.full((3, 8, 8), value, np.uint8) for value in range(3)]
    for kind, values, why in (
        ("float32", [0.5, 1.5, 2.5], "is Value('float32'), not ClassLabel or integers"),
        ("int64", [5, 10**12, 7], "has 1,000,000,000,001 classes"),
    ):
        source = write_tiles(tmp_path / kind, tiles, columns={"label": (datasets.Value(kind), values)})
        fields = inspected(capfd, source, "--sheet", tmp_path / kind / "sheet.png")
        assert fields["labels"] is None
        (warning,) = [text for text in fields["warnings"] if text.startswith("no classes: ")]
        assert why in warning
        assert (tmp_path / kind / "sheet.png").is_file()


def test_grey_pictures_among_coloured_ones(tmp_path):
    """As in training, the first tile does not decide the number of bands."""
    for index, array in enumerate(random_pixels(64)):
        write_file(tmp_path / f"{index:02}.png", encode_image(array[:, :, 0] if index in (0, 20, 40) else array))
    found = inspect_tiles(open_without_recipe(str(tmp_path)), 0)
    assert (found.measured.damaged, found.tiles.bands) == ([], ["red", "green", "blue"])
    assert found.sizes == [((8, 8), 64)]
    assert list_warnings(found) == []


def test_a_full_disk_leaves_nothing_half_written(pairs, tmp_path):
    recipe = preview_recipe(str(pairs), None, ["encoder.image_size=32", "data.num_workers=0"])
    found = inspect_tiles(open_without_recipe(str(pairs)), 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        for draw in (
            lambda: write_preview(tmp_path / "x.png", recipe, 2),
            lambda: write_contact_sheet(tmp_path / "x.png", found),
        ):
            with pytest.raises(OSError, match="File too large"):
                draw()
            assert list(tmp_path.iterdir()) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_odd_folder_names_are_printed_unchanged(pairs, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "odd [out] 'é' [red]"
    (tmp_path / source).symlink_to(pairs)
    run_command("inspect", source, "--sheet", "s [out].png")
    run_command("preview", source, "v [out].png", *SMALL)
    printed = capfd.readouterr().err
    for text in (source, "contact sheet: s [out].png", "views: v [out].png"):
        assert text in printed
    assert bytes_on_disk(open_without_recipe(f"{source}/*.parquet")) == next(pairs.glob("*.parquet")).stat().st_size


def test_a_grey_picture_names_its_band_once():
    assert channel_names((0, 0, 0), ["elevation"]) == "elevation"
    assert channel_names((2, 1, 0), ["B2", "B3", "B4"]) == "B4, B3, B2"


def test_a_long_subtitle_takes_two_lines():
    text = "of 1,000 tiles; views of 224 x 224 pixels, augment.preset=satellite, noise 0.01, data.scaling=percentiles"
    assert wrap_in_two(text, 5000) == [text]
    lines = wrap_in_two(text, 500)
    assert " ".join(lines) == text
    assert [load_font(13).getlength(line) <= 500 for line in lines] == [True, True]
    assert wrap_in_two("word", 1) == ["word"]
