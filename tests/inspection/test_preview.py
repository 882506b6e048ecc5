"""moco-data preview: it draws the views of training in their cells; errors."""

from __future__ import annotations

import random

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from support.builds import refused, run_command
from support.recipes import small_recipe
from support.tile_files import FOREST, SENTINEL2, WATER, npy, spectral_tiles, write_tiles

from moco_accel.common.drawing import common_stretch
from moco_accel.common.errors import UserError
from moco_accel.inspection.picture_grid import view_corner
from moco_accel.inspection.preview import (
    band_triples,
    caption_lines,
    find_readable,
    preview_recipe,
    stored_views,
    write_preview,
)
from moco_accel.recipe.load import recipe_from_dict, save_recipe
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.tile_metadata import TileMetadata
from moco_accel.training.loader import TwoViewDataset, open_training_tiles
from moco_accel.views.crops import make_crop, resize, rotate_and_flip, scale_stored, stack_crops
from moco_accel.views.parameters import Geometry, Photometry

NO_COLOUR = {
    "jitter_probability": 0.0,
    "greyscale_probability": 0.0,
    "band_drop_probability": 0.0,
    "blur_probability": [0.0, 0.0],
    "solarize_probability": [0.0, 0.0],
    "noise_std": 0.0,
}


@pytest.fixture(scope="module")
def sentinel2(tmp_path_factory):
    """Twelve tiles of 13 bands, a second season beside each; tile 5 is damaged."""
    spectra = [[*s[:10], 12, *s[10:]] for s in (WATER, FOREST)]
    tiles, others = spectral_tiles(spectra, 12), spectral_tiles(spectra, 12, seed=1)
    folder = tmp_path_factory.mktemp("sentinel2")
    facts = TileMetadata(SENTINEL2, "uint16", "sentinel2", 0)
    other = (datasets.Value("binary"), [npy(tile) for tile in others])
    return write_tiles(folder, tiles, facts, {"other": other}, damaged=(5,))


def thirteen_bands(source, **data) -> Recipe:
    fields = {"source": str(source), "image_column": "image", "scaling": "reflectance", "streaming": True} | data
    return small_recipe(encoder={"bands": 13}, data=fields, augment=NO_COLOUR)


def resolved(recipe: Recipe) -> Recipe:
    """Set plain mean and std instead of measured ones."""
    data = recipe.data.model_copy(update={"mean": [0.1] * 13, "std": [0.3] * 13})
    return recipe.model_copy(update={"data": data})


def test_views_without_colour_changes_are_the_crops(sentinel2):
    recipe = resolved(thirteen_bands(sentinel2))
    tiles = open_training_tiles(recipe)
    crops = [make_crop(tiles[index], recipe, 0, index, 1) for index in range(3)]
    views = stored_views(crops, recipe)
    assert views.shape == (3, 13, 16, 16)
    for view, crop in zip(views, crops, strict=True):
        assert np.abs(view - crop.pixels.double().numpy() * 10_000).max() < 0.005  # of 10,000; worst measured: 1.1e-3


def test_another_scaling_drops_the_advised_statistics(sentinel2, tmp_path):
    recipe = preview_recipe(str(sentinel2), None, ["data.scaling=reflectance", "data.image_column=image"])
    assert (recipe.data.scaling, recipe.data.low, recipe.data.mean) == ("reflectance", None, None)
    assert write_preview(tmp_path / "views.png", recipe, 1)


def test_views_are_those_of_the_first_epoch(sentinel2, tmp_path):
    recipe = thirteen_bands(sentinel2)
    shown = write_preview(tmp_path / "views.png", recipe, 3)
    tiles = open_training_tiles(recipe)
    group = common_stretch([tiles[index].numpy() for index in shown], (3, 2, 1))
    with Image.open(tmp_path / "views.png") as picture:
        for row, index in enumerate(shown):
            for view in (0, 1):
                crop = TwoViewDataset(tiles, recipe)[(0, index)].crops[view]
                expected = group.to_rgb(crop.pixels.float().numpy() * 10_000)
                left, top = view_corner(3, 0, 1 + view, row, 224 + 8 + 17 * 3)
                for y, x in ((0, 0), (8, 5), (15, 15)):
                    pixel = picture.getpixel((left + 14 * x + 7, top + 14 * y + 7))
                    assert np.abs(np.array(pixel) - expected[y, x]).max() <= 1


def test_the_captioned_geometry_reproduces_the_crop(sentinel2):
    recipe = thirteen_bands(sentinel2)
    tile = open_training_tiles(recipe)[2]
    for view in (0, 1):
        crop = make_crop(tile, recipe, 0, 2, view)
        g = crop.geometry
        box = tile[:, g.top : g.top + g.height, g.left : g.left + g.width]
        expected = rotate_and_flip(resize(scale_stored(box, recipe), 16), g).half()
        assert torch.equal(crop.pixels, expected)


def test_the_next_tile_replaces_a_damaged_one(sentinel2, tmp_path):
    recipe = thirteen_bands(sentinel2)
    assert find_readable(open_training_tiles(recipe), recipe, 12) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    tiles = [np.full((3, 16, 16), value, np.uint8) for value in range(4)]
    others = [npy(tile)[: None if value == 2 else 100] for value, tile in enumerate(tiles)]
    source = write_tiles(tmp_path, tiles, columns={"other": (datasets.Value("binary"), others)}, damaged=(3,))
    pairs = small_recipe(data={"source": str(source), "image_column": "image", "pair_column": "other"})
    assert find_readable(open_training_tiles(pairs), pairs, 4) == [2]


def test_boxes_are_drawn_on_the_tile_of_the_view(sentinel2, tmp_path):
    """Each view of a pair comes from one season; its box is drawn there."""
    recipe = thirteen_bands(sentinel2, pair_column="other")
    shown = write_preview(tmp_path / "pairs.png", recipe, 4)
    tiles = open_training_tiles(recipe)
    blue = (0x24, 0x68, 0xB4)
    with Image.open(tmp_path / "pairs.png") as picture:
        pixels = np.array(picture)
    on_the_other = 0
    for row, index in enumerate(shown):
        swapped = random.Random(f"{recipe.run.seed}/0/{index}").random() < 0.5
        on_the_other += swapped
        for column, expected in ((0, not swapped), (1, swapped)):
            left, top = view_corner(4, 0, column, row, 224 + 8 + 17 * 3)
            cell = pixels[top : top + 224, left : left + 224].reshape(-1, 3)
            assert bool((cell == blue).all(1).any()) == expected
        assert len(tiles.pair(index)) == 13
    assert 0 < on_the_other < 4


def test_true_colour_then_near_infrared_or_selected_bands(sentinel2, tiles_folder):
    recipe = thirteen_bands(sentinel2)
    tiles = open_training_tiles(recipe)
    assert band_triples(tiles, recipe, None) == [(3, 2, 1), (7, 3, 2)]
    assert band_triples(tiles, recipe, ["B12", "b8a", "B04"]) == [(3, 2, 1), (12, 8, 3)]
    assert band_triples(tiles, recipe, ["B4", "B3", "B2"]) == [(3, 2, 1)]
    rgb = small_recipe(data={"source": str(tiles_folder)})
    assert band_triples(open_training_tiles(rgb), rgb, None) == [(0, 1, 2)]
    with pytest.raises(UserError, match="B99 is not there"):
        band_triples(tiles, recipe, ["B99", "B4", "B3"])
    with pytest.raises(UserError, match="--bands=B8: 1 bands are given; three named bands work"):
        band_triples(tiles, recipe, ["B8"])


def test_a_source_alone_is_scaled_as_inspect_advises(sentinel2, tiles_folder):
    recipe = preview_recipe(str(sentinel2) + "/*.parquet", None, ["data.image_column=image", "augment.preset=paper"])
    assert (recipe.encoder.bands, recipe.encoder.image_size) == (13, 224)
    assert (recipe.data.scaling, recipe.data.bands) == ("percentiles", SENTINEL2)
    assert recipe.augment.crop_min_scale == 0.08
    rgb = preview_recipe(str(tiles_folder), None, [])
    assert (rgb.encoder.bands, rgb.data.scaling) == (3, "uint8")
    assert rgb.data.mean == pytest.approx([0.5] * 3, abs=0.01)


def test_a_recipe_takes_its_tiles_from_the_source(tmp_path, tiles_folder):
    path = tmp_path / "recipe.yaml"
    save_recipe(small_recipe(data={"source": "nowhere"}), path)
    assert preview_recipe(str(tiles_folder), path, ["run.seed=3"]).data.source == str(tiles_folder)
    assert preview_recipe(str(path), None, ["run.seed=3"]).run.seed == 3
    with pytest.raises(UserError, match="are two recipes"):
        preview_recipe(str(path), path, [])
    with pytest.raises(UserError, match="does not exist"):
        preview_recipe("nothing.yaml", None, [])


def test_eight_bit_tiles_are_drawn_unchanged(tmp_path, tiles_folder):
    recipe = small_recipe(encoder={"image_size": 32}, data={"source": str(tiles_folder)}, augment=NO_COLOUR)
    shown = write_preview(tmp_path / "rgb.png", recipe, 2)
    tile = open_training_tiles(recipe)[shown[0]].numpy()
    crop = make_crop(torch.from_numpy(tile), recipe, 0, shown[0], 0).pixels
    with Image.open(tmp_path / "rgb.png") as picture:
        assert picture.size == (2 * 28 + 3 * 224 + 2 * 10, 116 + 2 * (224 + 8 + 51 + 10) - 10 + 28)
        left, top = view_corner(3, 0, 1, 0, 0)
        assert picture.getpixel((left + 3, top + 3)) == pytest.approx(tuple(crop[:, 0, 0].tolist()), abs=1)


def test_captions():
    geometry = Geometry(0, 0, 10, 20, 1, True, False)
    colours = Photometry(1.1, 0.9, 0.0, -0.04, 0.0, 1.0)
    assert caption_lines(geometry, colours, 20, 20, ["red", "green", "blue"]) == [
        "50% of area, 90°, flipped left-right",
        "bright 1.10, contrast 0.90, hue -0.04, grey",
        "solarized",
    ]
    bands = Photometry(blur_sigma=1.25, band_gain=(0.9, 1.05), band_offset=(0.01, -0.02), band_keep=(1.0, 0.0))
    assert caption_lines(Geometry(0, 0, 20, 20, 0, False, False), bands, 20, 20, ["B8", "B4"]) == [
        "100% of area",
        "gain 0.90 to 1.05, offset within ±0.020",
        "blur 1.2 pixels, without B4",
    ]
    assert caption_lines(geometry, Photometry(), 20, 20, [])[1:] == ["colours kept", "sharp"]


def test_the_command_writes_a_picture_and_errors_take_one_line(tmp_path, tiles_folder, capfd):
    small = ["--tiles", "2", "--set", "encoder.image_size=32"]
    run_command("preview", tiles_folder, tmp_path / "v.png", *small)
    out, err = capfd.readouterr()
    assert out == ""
    assert "v.png" in err
    with Image.open(tmp_path / "v.png") as picture:
        assert picture.format == "PNG"
    for arguments, message in (
        ([str(tiles_folder), "v.jpg"], "OUT='v.jpg' does not end in .png; v.png works"),
        ([str(tiles_folder), "v.png", "--set", "augment.presett=paper"], "augment.presett"),
        ([str(tiles_folder), "v.png", "--bands", "B8,B4"], "--bands=B8,B4: 2 bands are given"),
    ):
        assert message in refused(capfd, "preview", *arguments, *small)


def test_stacked_crops_are_augmented_independently(sentinel2):
    recipe = resolved(thirteen_bands(sentinel2))
    strong = recipe_from_dict(recipe.model_dump(exclude={"planned"}) | {"augment": {"preset": "satellite"}})
    tiles = open_training_tiles(strong)
    crops = [make_crop(tiles[index], strong, 0, index, 0) for index in (0, 1)]
    together, alone = stored_views(crops, strong), stored_views(crops[1:], strong)
    assert stack_crops(crops).pixels.shape == (2, 13, 16, 16)
    assert np.abs(together[1] - alone[0]).max() < 0.05  # of 10,000
