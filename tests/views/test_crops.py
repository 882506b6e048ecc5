"""Random parameters have the stated distributions; crops are exact for any stored type."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from support.recipes import small_recipe
from torchvision.transforms.v2 import functional as transforms

from moco_accel.common.errors import UserError
from moco_accel.recipe.data_sections import Augment
from moco_accel.recipe.schema import Recipe
from moco_accel.views.augment import AugmentedView
from moco_accel.views.crops import crop_dtype, make_crop, rotate_and_flip, stack_crops, to_pixels
from moco_accel.views.parameters import Geometry, draw_geometry, draw_photometry

DRAWS = 10_000
FOUR_DEVIATIONS = 0.02  # of a share of 10,000 draws; at most 4 · 0.5 / 100


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_rotations_and_flips_permute_pixels(turns: int, flips: tuple[bool, bool], dtype: torch.dtype) -> None:
    tile = torch.arange(3 * 8 * 8).reshape(3, 8, 8).to(dtype)
    expected = torch.rot90(tile, turns, (1, 2))
    expected = expected.flip(2) if flips[0] else expected
    expected = expected.flip(1) if flips[1] else expected
    for stored in (tile, tile.permute(1, 2, 0).contiguous().permute(2, 0, 1)):  # bands first, bands last in memory
        view = rotate_and_flip(stored, Geometry(0, 0, 8, 8, turns, *flips))
        assert torch.equal(view, expected)
        assert view.is_contiguous()


def test_crop_equals_torchvision() -> None:
    tile = torch.randint(0, 256, (3, 60, 50), dtype=torch.uint8)
    recipe = small_recipe(augment={"rotate_quarter_turns": False, "horizontal_flip_probability": 0.0,
                                   "vertical_flip_probability": 0.0}, encoder={"image_size": 24})  # fmt: skip
    for index in range(20):
        crop = make_crop(tile, recipe, 0, index, 0)
        g = draw_geometry(random.Random(f"0/0/{index}/0"), recipe.augment, 60, 50)
        box = transforms.resized_crop(tile, g.top, g.left, g.height, g.width, [24, 24], antialias=True)
        assert torch.equal(crop.pixels, box)


def test_crops_have_the_stated_area() -> None:
    draw = random.Random(0)
    augment = Augment(crop_min_scale=0.2)
    areas = []
    for _ in range(DRAWS):
        crop = draw_geometry(draw, augment, 64, 64)
        assert crop.top >= 0
        assert crop.left >= 0
        assert crop.top + crop.height <= 64
        assert crop.left + crop.width <= 64
        assert 0.7 < crop.width / crop.height < 1.43
        areas.append(crop.height * crop.width / 64**2)
    assert 0.19 < min(areas) < 0.21
    assert max(areas) > 0.97


@pytest.mark.parametrize("preset", ["satellite", "paper", "seasons"])
def test_rotations_and_flips_have_the_stated_probabilities(preset: str) -> None:
    draw, augment = random.Random(0), Augment.model_validate({"preset": preset})
    drawn = [draw_geometry(draw, augment, 64, 64) for _ in range(DRAWS)]
    turns = Counter(crop.quarter_turns for crop in drawn)
    expected = [1.0, 0.0, 0.0, 0.0] if preset == "paper" else [0.25] * 4
    assert [turns[k] / DRAWS for k in range(4)] == pytest.approx(expected, abs=FOUR_DEVIATIONS)
    flips = [sum(c.horizontal_flip for c in drawn) / DRAWS, sum(c.vertical_flip for c in drawn) / DRAWS]
    assert flips == pytest.approx([0.5, 0.0 if preset == "paper" else 0.5], abs=FOUR_DEVIATIONS)


def assert_uniform(values: Sequence[float], low: float, high: float) -> None:
    """Check range, mean and standard deviation of a uniform distribution."""
    width = high - low
    assert low <= min(values) <= low + 0.005 * width + 1e-12
    assert high - 0.005 * width - 1e-12 <= max(values) <= high
    assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.015 * width + 1e-12)
    assert np.std(values) == pytest.approx(width / 12**0.5, abs=0.01 * width + 1e-12)


@pytest.mark.parametrize("preset", ["satellite", "paper", "seasons"])
@pytest.mark.parametrize("view", [0, 1])
def test_colours_have_the_stated_ranges_and_probabilities(preset: str, view: int) -> None:
    draw, augment = random.Random(0), Augment.model_validate({"preset": preset})
    drawn = [draw_photometry(draw, augment, view, 224, 3) for _ in range(DRAWS)]
    share = {
        "jitter": sum(p.brightness != 1 for p in drawn) / DRAWS,
        "grey": sum(p.saturation == 0 for p in drawn) / DRAWS,
        "blur": sum(p.blur_sigma > 0 for p in drawn) / DRAWS,
        "solarize": sum(p.solarize for p in drawn) / DRAWS,
    }
    expected = {
        "jitter": augment.jitter_probability,
        "grey": augment.greyscale_probability,
        "blur": augment.blur_probability[view],
        "solarize": augment.solarize_probability[view],
    }
    assert share == pytest.approx(expected, abs=FOUR_DEVIATIONS)
    jittered = [p for p in drawn if p.brightness != 1]
    for name in ("brightness", "contrast", "saturation"):
        width = getattr(augment, name)
        values = [getattr(p, name) for p in jittered if name != "saturation" or p.saturation]
        assert_uniform(values, 1 - width, 1 + width)
    assert_uniform([p.hue for p in jittered], -augment.hue, augment.hue)
    if view == 0:
        assert_uniform([p.blur_sigma for p in drawn if p.blur_sigma], 0.1, 2.0)
    assert not any(p.band_gain or p.band_offset or p.band_keep for p in drawn)


@pytest.mark.parametrize("preset", ["satellite", "paper", "seasons"])
def test_bands_have_the_stated_ranges_and_probabilities(preset: str) -> None:
    draw, augment = random.Random(0), Augment.model_validate({"preset": preset})
    drawn = [draw_photometry(draw, augment, 0, 224, 13) for _ in range(DRAWS)]
    jittered = [p for p in drawn if p.band_gain[0] != 1]
    assert len(jittered) / DRAWS == pytest.approx(augment.jitter_probability, abs=FOUR_DEVIATIONS)
    for band in range(13):
        assert_uniform([p.band_gain[band] for p in jittered], 1 - augment.band_gain, 1 + augment.band_gain)
        assert_uniform([p.band_offset[band] for p in jittered], -augment.band_offset, augment.band_offset)
        dropped = sum(p.band_keep[band] == 0 for p in drawn) / DRAWS
        assert dropped == pytest.approx(augment.band_drop_probability, abs=FOUR_DEVIATIONS)
    gains = np.corrcoef([p.band_gain for p in jittered], rowvar=False)
    assert np.abs(gains - np.eye(13)).max() < 0.06  # bands are independent; five deviations of 8,000
    assert all((p.brightness, p.contrast, p.saturation, p.hue) == (1, 1, 1, 0) for p in drawn)


def test_at_least_one_band_is_kept() -> None:
    draw, augment = random.Random(0), Augment(band_drop_probability=0.9)
    for bands in (1, 2, 4):
        kept = [sum(draw_photometry(draw, augment, 0, 224, bands).band_keep) for _ in range(1_000)]
        assert min(kept) == 1


def test_preset_fields_can_be_overridden() -> None:
    augment = Augment.model_validate({"preset": "paper", "hue": 0.02, "noise_std": 0.05})
    assert (augment.hue, augment.noise_std, augment.brightness) == (0.02, 0.05, 0.4)
    hues = [draw_photometry(random.Random(i), augment, 0, 224, 3).hue for i in range(2_000)]
    assert max(hues) == pytest.approx(0.02, abs=5e-4)


def test_view_depends_only_on_seed_epoch_tile_and_view() -> None:
    tile = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    crops = {}
    for seed in (0, 1):
        recipe = small_recipe(run={"seed": seed})
        for indices in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):  # epoch, tile, view
            crop = make_crop(tile, recipe, *indices)
            again = make_crop(tile, recipe, *indices)
            assert torch.equal(crop.pixels, again.pixels)
            assert (crop.photometry, crop.noise_seed) == (again.photometry, again.noise_seed)
            crops[seed, indices] = crop
    assert len({crop.noise_seed for crop in crops.values()}) == 8


def test_rgb_parameters_equal_those_of_version_0_1_0() -> None:
    """A run of that version resumes with the same views."""
    recipe = small_recipe(encoder={"image_size": 64})
    draw = random.Random("0/3/1238/1")
    assert draw_geometry(draw, recipe.augment, 64, 64) == Geometry(5, 1, 50, 54, 2, True, True)
    crop = make_crop(torch.zeros(3, 64, 64, dtype=torch.uint8), recipe, 3, 1238, 1)
    expected = [1.0001130907, 0.8962868248, 0.9066733451, 0.0342283164, 0.4273595888, 0.0]
    assert astuple(crop.photometry)[:6] == pytest.approx(expected, abs=1e-9)
    assert crop.noise_seed == 4274075607411053600


def test_views_of_a_tile_differ() -> None:
    recipe = small_recipe()
    tile = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    for index in range(50):
        first, second = (
            AugmentedView([stack_crops([make_crop(tile, recipe, 0, index, view)])], recipe, torch.device("cpu"))[0]
            for view in (0, 1)
        )
        assert (first - second).abs().mean() > 0.2  # smallest measured: 0.39, in normalised units


def scaled_recipe(scaling: str, bands: int, **data: Any) -> Recipe:
    fields = {"scaling": scaling, "mean": [0.5] * bands, "std": [0.25] * bands, **data}
    geometry = {"crop_min_scale": 1.0, "rotate_quarter_turns": False, "horizontal_flip_probability": 0.0}
    return small_recipe(
        encoder={"bands": bands, "image_size": 64}, data=fields, augment=geometry | {"vertical_flip_probability": 0.0}
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float32])
@pytest.mark.parametrize(
    ("scaling", "data"),
    [
        ("reflectance", {}),
        ("reflectance_offset", {}),
        ("percentiles", {"low": [10.0 * b for b in range(13)], "high": [2e3 + 2.5e3 * b for b in range(13)]}),
    ],
    ids=["reflectance", "offset", "percentiles"],
)
def test_stored_values_are_scaled_to_pixels(dtype: torch.dtype, scaling: str, data: dict[str, Any]) -> None:
    """The crop is the whole tile at its own size, so that no pixel is interpolated."""
    top = {torch.uint8: 255, torch.uint16: 40_000, torch.int16: 20_000, torch.float32: 12_000}[dtype]
    generator = torch.Generator().manual_seed(0)
    tile = torch.randint(0, top, (13, 64, 64), generator=generator).to(dtype)
    recipe = scaled_recipe(scaling, 13, **data)
    low, high = (np.array(values)[:, None, None] for values in recipe.stored_range)
    before = tile.clone()
    crop = make_crop(tile, recipe, 0, 0, 0).pixels
    assert torch.equal(tile, before)
    expected = np.clip((tile.numpy().astype(np.float64) - low) / (high - low), 0, 1)
    assert crop_dtype(recipe) == torch.float16 == crop.dtype
    assert 0.1 < expected.mean() < 0.9 or dtype == torch.uint8
    worst = np.abs(crop.double().numpy() - expected).max()
    assert worst < 2.5e-4  # float16 rounds by half of 2⁻¹¹ above one half: 2.44e-4


def test_bands_are_scaled_before_they_are_resized() -> None:
    """A single bright pixel counts as 1, not as 65,535."""
    tile = torch.zeros(2, 64, 64, dtype=torch.uint16)
    tile[0, 32, 32] = 65_535
    recipe = scaled_recipe("range", 2, low=[0.0, 0.0], high=[100.0, 100.0])
    small = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"image_size": 16})})
    crop = make_crop(tile, small, 0, 0, 0).pixels.float()
    assert 0.02 < crop[0].max() < 0.1
    assert crop[1].max() == 0


def test_thirteen_bands_become_normalised_pixels() -> None:
    recipe = scaled_recipe("reflectance", 13)
    tile = torch.full((13, 64, 64), 5_000, dtype=torch.uint16)
    batch = stack_crops([make_crop(tile, recipe, 0, index, 0) for index in range(3)])
    pixels = AugmentedView([batch], recipe, torch.device("cpu"))[0]
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 13, 64, 64)
    bands = pixels.mean((2, 3))
    assert bands.abs().max() < 0.4  # 0.5 · 10 % gain + 0.02 offset, over a deviation of 0.25
    assert bands.std() > 0.05


@pytest.mark.parametrize("nodata", [None, -9999.0, -3.4028234663852886e38])
def test_no_data_of_float_tiles_becomes_the_bands_mean(nodata: float | None) -> None:
    """Also without a number for no data: float tiles mark it by NaN."""
    tile = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    tile[0, :4] = torch.nan
    data = {"scaling": "range", "low": [0, 0], "high": [1, 1], "mean": [0.25, 0.5], "std": [1, 1], "nodata": nodata}
    pixels = to_pixels(tile, small_recipe(encoder={"bands": 2}, data=data))
    assert torch.equal(pixels[:, 4:], tile[:, 4:])
    assert torch.equal(pixels[:, :4], torch.tensor([0.25, 0.5])[:, None, None].expand(2, 4, 16))


@pytest.mark.parametrize(
    ("low", "high"), [(-3.4028234663852886e38, 3.4028234663852886e38), (0, 1e-44), (1e37, 3e38), (-2e38, -1e38), (0, 1)]
)
def test_extreme_ranges_are_scaled_without_overflow(low: float, high: float) -> None:
    values = torch.tensor([low, low + (high / 2 - low / 2), high], dtype=torch.float64).float()
    data = {"scaling": "range", "low": [low], "high": [high], "mean": [0.5], "std": [1]}
    pixels = to_pixels(values.expand(1, 3, 3), small_recipe(encoder={"bands": 1}, data=data))
    assert pixels[0, 0].tolist() == pytest.approx([0, 0.5, 1], abs=0.1 if high < 1e-40 else 1e-6)  # 1e-44 has 3 bits


def test_uint8_scaling_of_other_types_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^data.scaling=uint8 but the tiles hold uint16; data.scaling=percentiles"):
        make_crop(torch.zeros(3, 32, 32, dtype=torch.uint16), small_recipe(), 0, 0, 0)
