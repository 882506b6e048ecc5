"""Photometric augmentation equals torchvision, and does not depend on micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.recipes import small_recipe
from torchvision.transforms.v2 import functional as transforms

from moco_accel.recipe.schema import Recipe
from moco_accel.views import photometric
from moco_accel.views.augment import AugmentedView, augment_pixels
from moco_accel.views.crops import CropBatch, make_crop, stack_crops
from moco_accel.views.parameters import Photometry, worst_case_photometry

CPU = torch.device("cpu")
PIXELS = torch.rand(16, 3, 40, 40, generator=torch.Generator().manual_seed(0))
FACTORS = torch.linspace(0.4, 1.6, 16)
SHIFTS = torch.linspace(-0.5, 0.5, 16)
SIGMAS = torch.linspace(0.1, 2.0, 16)
NO_AUGMENTATION: dict[str, Any] = {
    "jitter_probability": 0.0,
    "greyscale_probability": 0.0,
    "blur_probability": [0.0, 0.0],
    "solarize_probability": [0.0, 0.0],
    "noise_std": 0.0,
}


def recipe_with_bands(bands: int, **sections: dict[str, Any]) -> Recipe:
    data = {"mean": [0.5] * bands, "std": [0.25] * bands}
    sections["data"] = data | sections.get("data", {})
    return small_recipe(**{**sections, "encoder": {"bands": bands} | sections.get("encoder", {})})


def denormalise(output: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in recipe.normalisation)
    return output * std + mean


def blur_by_tile(pixels: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    return torch.stack([photometric.blur_tile(t, float(s)) for t, s in zip(pixels, sigmas, strict=True)])


# the worst measured difference is beside each tolerance; 1/255 is required; our blur ends at 3 standard deviations
@pytest.mark.parametrize(
    ("ours", "theirs", "numbers", "tolerance"),
    [
        (photometric.adjust_brightness_, transforms.adjust_brightness, FACTORS, 1e-7),  # 0
        (photometric.adjust_contrast_, transforms.adjust_contrast, FACTORS, 1e-6),  # 6e-8
        (photometric.adjust_saturation_, transforms.adjust_saturation, FACTORS, 1e-6),  # 6e-8
        (photometric.adjust_hue_, transforms.adjust_hue, SHIFTS, 1e-5),  # 1e-6
        (lambda x, s: photometric.blur(x, s, 2.0), lambda x, s: transforms.gaussian_blur(x, [13, 13], s), SIGMAS, 1e-3),
        (blur_by_tile, lambda x, s: transforms.gaussian_blur(x, [13, 13], s), SIGMAS, 1e-3),  # both 3e-4
        (
            lambda x, s: photometric.solarize_(x, (s > 1).float()),
            lambda x, s: transforms.solarize(x, 0.5) if s > 1 else x,
            FACTORS,
            1e-7,  # 0
        ),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "blur", "blur by tile", "solarize"],
)
def test_operations_equal_torchvision(ours: Any, theirs: Any, numbers: torch.Tensor, tolerance: float) -> None:
    expected = torch.stack([theirs(tile, float(number)) for tile, number in zip(PIXELS, numbers, strict=True)])
    worst = (ours(PIXELS.clone(), numbers) - expected).abs().max()
    print(f"worst {worst:.1e}")
    assert worst < tolerance < 1 / 255


@pytest.mark.parametrize("pixels", [torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.3)])
def test_hue_does_not_change_grey(pixels: torch.Tensor) -> None:
    assert torch.equal(photometric.adjust_hue_(pixels.clone(), torch.tensor([0.3])), pixels)


def test_hue_of_a_third_permutes_the_bands() -> None:
    third = photometric.adjust_hue_(PIXELS.clone(), torch.full((16,), 1 / 3))
    torch.testing.assert_close(third, PIXELS[:, [2, 0, 1]], rtol=0, atol=1e-5)  # worst measured: 1e-6


def test_neutral_values_change_nothing() -> None:
    ones, zeros = torch.ones(16), torch.zeros(16)
    for adjust_ in (photometric.adjust_brightness_, photometric.adjust_contrast_, photometric.adjust_saturation_):
        assert torch.equal(adjust_(PIXELS.clone(), ones), PIXELS)
    torch.testing.assert_close(photometric.adjust_hue_(PIXELS.clone(), zeros), PIXELS)
    assert torch.equal(photometric.solarize_(PIXELS.clone(), zeros), PIXELS)
    bands = torch.ones(16, 3), torch.zeros(16, 3)
    assert torch.equal(photometric.scale_bands_(PIXELS.clone(), *bands), PIXELS)


def test_blur_does_not_change_a_flat_tile() -> None:
    flat = torch.full((2, 5, 9, 7), 0.25)  # smaller than twice the kernel
    sigmas = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(photometric.blur(flat, sigmas, 2.0), flat)
    torch.testing.assert_close(blur_by_tile(flat, sigmas), flat)


@pytest.mark.parametrize("bands", [1, 3, 13])
@pytest.mark.parametrize("on_gpu", [False, True], ids=["as a CPU", "as a GPU"])
def test_micro_batches_do_not_change_the_pixels(bands: int, on_gpu: bool) -> None:
    recipe = recipe_with_bands(bands, augment={"blur_probability": [0.5, 0.5]})
    tile = torch.randint(0, 256, (bands, 32, 32), dtype=torch.uint8)
    crops = [make_crop(tile, recipe, 0, index, 1) for index in range(12)]
    parts = [stack_crops(crops[start:end]) for start, end in ((0, 1), (1, 5), (5, 12))]
    whole = AugmentedView([stack_crops(crops)], recipe, CPU, on_gpu)
    split = AugmentedView(parts, recipe, CPU, on_gpu)
    # worst measured: 0; on a GPU, the order of summation in a convolution is not fixed
    torch.testing.assert_close(torch.cat(list(split)), whole[0], rtol=0, atol=5e-6 if on_gpu else 0)
    assert torch.equal(split[2], split[2])
    assert len(list(whole)) == 1


@pytest.mark.parametrize("bands", [1, 3, 13])
def test_gpu_path_equals_cpu_path(bands: int) -> None:
    recipe = recipe_with_bands(bands, augment={"preset": "paper", "noise_std": 0.02}, encoder={"image_size": 64})
    tile = torch.randint(0, 256, (bands, 64, 64), dtype=torch.uint8)
    for view in (0, 1):
        batch = stack_crops([make_crop(tile, recipe, 0, index, view) for index in range(12)])
        gpu_path, cpu_path = (AugmentedView([batch], recipe, CPU, on_gpu)[0] for on_gpu in (True, False))
        torch.testing.assert_close(gpu_path, cpu_path, rtol=0, atol=1e-5)  # worst measured: 2e-6, in normalised units


def test_noise_comes_before_normalisation() -> None:
    """In normalised units, its standard deviation is noise_std / data.std."""
    noisy = small_recipe(
        augment=NO_AUGMENTATION | {"noise_std": 0.05}, data={"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.2, 0.5]}
    )
    output = augment_pixels(CropBatch(torch.full((4, 3, 64, 64), 0.5), [Photometry()] * 4, [1, 2, 3, 4]), noisy)
    torch.testing.assert_close(output.std((0, 2, 3)), torch.tensor([0.5, 0.25, 0.1]), rtol=0.02, atol=0)


def test_noise_is_white_gaussian_and_depends_on_the_tile() -> None:
    seeds = [int(s) for s in torch.randint(2**62, (64,), generator=torch.Generator().manual_seed(0))]
    banks = photometric.noise_banks(3 * 64 * 64, CPU)
    noise = photometric.add_noise_(torch.full((64, 3, 64, 64), 0.5), 0.05, seeds, banks).sub_(0.5).div_(0.05)
    single = photometric.add_noise_(torch.full((1, 3, 64, 64), 0.5), 0.05, seeds[5:6], banks).sub_(0.5).div_(0.05)
    assert torch.equal(noise[5], single[0])
    deviation = 12_288**-0.5  # tiles share the banks, so all of them are no better a sample than one
    for values in (noise.flatten(), noise[0].flatten(), noise[1].flatten()):
        assert abs(values.mean()) < 5 * deviation
        assert abs(values.std() - 1) < 5 * deviation
        assert abs((values.abs() > 1.96).float().mean() - 0.05) < 5 * 0.22 * deviation
    within = torch.corrcoef(torch.stack([noise[0, 0, :, :-1].flatten(), noise[0, 0, :, 1:].flatten()]))
    between = torch.corrcoef(noise.flatten(1))
    assert abs(within[0, 1]) < 0.08  # five standard deviations of 4,032 pairs
    assert (between - torch.eye(64)).abs().max() < 0.05  # five of 12,288


def test_bands_get_gain_and_offset_and_a_dropped_band_is_its_mean() -> None:
    recipe = recipe_with_bands(5, augment=NO_AUGMENTATION, data={"mean": [0.1, 0.2, 0.3, 0.4, 0.5]})
    changes = [
        Photometry(band_gain=(1, 1.5, 1, 1, 1), band_offset=(0, 0, 0.1, 0, 0), band_keep=(1, 1, 1, 0, 1)),
        Photometry(band_gain=(1, 1, 1, 1, 3), band_offset=(0, 0, 0, -0.9, 0), band_keep=(1, 1, 1, 1, 1)),
    ]
    output = augment_pixels(CropBatch(torch.full((2, 5, 8, 8), 0.4), changes, [0, 1]), recipe)
    expected = torch.tensor([[0.4, 0.6, 0.5, 0.4, 0.4], [0.4, 0.4, 0.4, 0.0, 1.0]])  # clamped to 0 and 1
    torch.testing.assert_close(denormalise(output, recipe), expected[:, :, None, None].expand_as(output))
    assert torch.equal(output[0, 3], torch.zeros(8, 8))  # its mean, exactly


def test_worst_case_photometry_contains_every_augmentation() -> None:
    satellite = worst_case_photometry(small_recipe(encoder={"image_size": 224}))
    assert satellite.blur_sigma == 2.0
    assert (satellite.solarize, satellite.saturation, satellite.hue) == (1.0, 0.0, 0.05)
    assert worst_case_photometry(small_recipe(augment=NO_AUGMENTATION)) == Photometry()
    assert len(worst_case_photometry(recipe_with_bands(13)).band_gain) == 13


def test_crops_are_not_changed() -> None:
    recipe = small_recipe()
    for crops in (torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8), torch.rand(2, 3, 16, 16).half()):
        before = crops.clone()
        augment_pixels(CropBatch(crops, [worst_case_photometry(recipe)] * 2, [0, 1]), recipe)
        assert torch.equal(crops, before)
