"""Augmentation: parameters from (seed, epoch, tile, view); crops on the CPU in uint8; the rest on the device.

Satellite tiles have no up: quarter turns and both flips. Angles between would bend straight roads and leave black
corners. Sensor noise comes before normalisation, in the pixel range [0, 1].
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from moco_accel import photometric
from moco_accel.recipe import Augment, Recipe

_SIGMA_RANGE = (0.1, 2.0)  # pixels of a 224-pixel crop (MoCo v3); scaled with the crop


@dataclass(frozen=True)
class Geometry:
    """A crop box in pixels of the tile, then quarter turns counter-clockwise, then flips."""

    top: int
    left: int
    height: int
    width: int
    quarter_turns: int
    horizontal_flip: bool
    vertical_flip: bool


@dataclass(frozen=True)
class Photometry:
    """Neutral values leave a tile as it is; see `photometric`. Sigma is in pixels of the crop."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    blur_sigma: float = 0.0
    solarize: float = 0.0


@dataclass(frozen=True)
class Crop:
    """One view of one tile before its photometric part: pixels `[bands, size, size]` uint8."""

    pixels: Tensor
    photometry: Photometry
    noise_seed: int


def make_crop(tile: Tensor, recipe: Recipe, epoch: int, tile_index: int, view: int) -> Crop:
    """View 0 or 1 of a uint8 tile `[bands, height, width]`: a function of (seed, epoch, tile, view) alone."""
    draw = random.Random(f"{recipe.run.seed}/{epoch}/{tile_index}/{view}")
    geometry = draw_geometry(draw, recipe.augment, tile.shape[-2], tile.shape[-1])
    photometry = draw_photometry(draw, recipe.augment, view, recipe.encoder.image_size)
    return Crop(apply_geometry(tile, geometry, recipe.encoder.image_size), photometry, draw.getrandbits(63))


def draw_geometry(draw: random.Random, augment: Augment, height: int, width: int) -> Geometry:
    """Random resized crop (area from crop_min_scale to 1, aspect 3/4 to 4/3), quarter turn, flips."""
    for _ in range(10):
        area = height * width * draw.uniform(augment.crop_min_scale, 1.0)
        aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            break
    else:  # as torchvision: give up on the aspect and take the largest centred square
        crop_height = crop_width = min(height, width)
    return Geometry(
        top=draw.randint(0, height - crop_height),
        left=draw.randint(0, width - crop_width),
        height=crop_height,
        width=crop_width,
        quarter_turns=draw.randrange(4) if augment.rotate_quarter_turns else 0,
        horizontal_flip=draw.random() < augment.horizontal_flip_probability,
        vertical_flip=draw.random() < augment.vertical_flip_probability,
    )


def draw_photometry(draw: random.Random, augment: Augment, view: int, image_size: int) -> Photometry:
    """Colour jitter in the fixed order brightness, contrast, saturation, hue; greyscale is saturation 0."""
    brightness = contrast = saturation = 1.0
    hue = sigma = 0.0
    if draw.random() < augment.jitter_probability:
        brightness = draw.uniform(1 - augment.brightness, 1 + augment.brightness)
        contrast = draw.uniform(1 - augment.contrast, 1 + augment.contrast)
        saturation = draw.uniform(1 - augment.saturation, 1 + augment.saturation)
        hue = draw.uniform(-augment.hue, augment.hue)
    if draw.random() < augment.greyscale_probability:
        saturation = 0.0
    if draw.random() < augment.blur_probability[view]:
        sigma = draw.uniform(*_SIGMA_RANGE) * image_size / 224
    return Photometry(
        brightness, contrast, saturation, hue, sigma, float(draw.random() < augment.solarize_probability[view])
    )


def apply_geometry(tile: Tensor, geometry: Geometry, size: int) -> Tensor:
    """Crop, resize (bilinear, antialiased), turn by quarters and flip, all in uint8: `[bands, size, size]`."""
    box = (geometry.top, geometry.left, geometry.height, geometry.width)
    view = transforms.resized_crop(tile, *box, size=[size, size], antialias=True)
    view = torch.rot90(view, geometry.quarter_turns, (-2, -1))
    flipped = [axis for axis, flip in ((-1, geometry.horizontal_flip), (-2, geometry.vertical_flip)) if flip]
    return view.flip(flipped).contiguous()


@dataclass(frozen=True)
class CropBatch:
    """One view of one micro-batch, on the host: pixels uint8, photometry `[tiles, fields]`, a noise seed per tile."""

    pixels: Tensor
    photometry: Tensor
    noise_seeds: list[int]

    def pin_memory(self) -> CropBatch:
        return CropBatch(self.pixels.pin_memory(), self.photometry.pin_memory(), self.noise_seeds)


def stack_crops(crops: Sequence[Crop]) -> CropBatch:
    photometry = torch.tensor([astuple(crop.photometry) for crop in crops])
    return CropBatch(torch.stack([crop.pixels for crop in crops]), photometry, [crop.noise_seed for crop in crops])


class AugmentedView(Sequence[Tensor]):
    """One view of a device's tiles as micro-batches, each moved to the device and augmented when asked for.

    Only uint8 crops wait, on the host. A micro-batch comes out the same each time, so that a recomputed forward sees
    the pixels that the first one saw; a single micro-batch is made once and kept.
    """

    def __init__(self, micro_batches: Sequence[CropBatch], recipe: Recipe, device: torch.device) -> None:
        self._micro_batches, self._recipe, self._device = micro_batches, recipe, device
        self._only = self._make(0) if len(micro_batches) == 1 else None

    def __len__(self) -> int:
        return len(self._micro_batches)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self._make(index) if self._only is None else [self._only][index]

    @torch.no_grad()
    def _make(self, index: int) -> Tensor:
        batch = self._micro_batches[index]
        pixels = batch.pixels.to(self._device, non_blocking=True).float() / 255
        photometry = batch.photometry.to(self._device, non_blocking=True)
        return augment_pixels(pixels, photometry, batch.noise_seeds, self._recipe)


def augment_pixels(pixels: Tensor, photometry: Tensor, noise_seeds: list[int], recipe: Recipe) -> Tensor:
    """The photometric part and normalisation of pixels in [0, 1]; colour operations for three bands only."""
    brightness, contrast, saturation, hue, sigma, solarize = photometry.unbind(1)
    pixels = photometric.adjust_brightness(pixels, brightness)
    pixels = photometric.adjust_contrast(pixels, contrast)
    if pixels.shape[1] == 3:
        pixels = photometric.adjust_saturation(pixels, saturation)
        if recipe.augment.hue:
            pixels = photometric.adjust_hue(pixels, hue)
    if any(recipe.augment.blur_probability):
        pixels = photometric.blur(pixels, sigma, _SIGMA_RANGE[1] * recipe.encoder.image_size / 224)
    pixels = photometric.solarize(pixels, solarize)
    if recipe.augment.noise_std:
        pixels = photometric.add_noise(pixels, recipe.augment.noise_std, noise_seeds)
    return photometric.normalise(pixels, *recipe.normalisation)
