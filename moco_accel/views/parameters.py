"""Draw the random parameters of one view of one tile: crop, rotation, flips, colours or bands, blur."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from moco_accel.recipe.data_sections import Augment
from moco_accel.recipe.schema import Recipe

_SIGMA_RANGE = (0.1, 2.0)  # pixels of a 224-pixel crop (MoCo v3); scaled with the crop


@dataclass(frozen=True)
class Geometry:
    """Crop box in pixels of the tile, then counter-clockwise quarter turns, then flips."""

    top: int
    left: int
    height: int
    width: int
    quarter_turns: int
    horizontal_flip: bool
    vertical_flip: bool


@dataclass(frozen=True)
class Photometry:
    """Parameters of photometric augmentation; the defaults are neutral, see `photometric`.

    Brightness, contrast, saturation and hue apply to tiles of three bands, the `band_` fields to all others.

    Attributes:
        blur_sigma: Standard deviation in pixels of the crop; 0 for no blur.
        solarize: 1 to solarize, 0 not to.
        band_offset: In the pixel range [0, 1].
        band_keep: 1 for a band that is kept, 0 for one that is dropped.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    blur_sigma: float = 0.0
    solarize: float = 0.0
    band_gain: tuple[float, ...] = ()
    band_offset: tuple[float, ...] = ()
    band_keep: tuple[float, ...] = ()


def draw_geometry(draw: random.Random, augment: Augment, height: int, width: int) -> Geometry:
    """Draw a random resized crop (area from `crop_min_scale` to 1, aspect 3/4 to 4/3), a quarter turn and flips."""
    for _ in range(10):
        area = height * width * draw.uniform(augment.crop_min_scale, 1.0)
        aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            break
    else:  # fall back to the largest square, as torchvision
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


def draw_photometry(draw: random.Random, augment: Augment, view: int, image_size: int, bands: int) -> Photometry:
    """Draw colour or band jitter, blur and solarization for view 0 or 1.

    Three bands get brightness, contrast, saturation and hue in this order; greyscale is saturation 0. Other numbers of
    bands get jitter with the same probability, independently for each band; then bands are dropped, but never all.
    """
    colours = _draw_colours(draw, augment) if bands == 3 else _draw_bands(draw, augment, bands)
    is_blurred = draw.random() < augment.blur_probability[view]
    sigma = draw.uniform(*_SIGMA_RANGE) * image_size / 224 if is_blurred else 0.0
    return replace(colours, blur_sigma=sigma, solarize=float(draw.random() < augment.solarize_probability[view]))


def _draw_colours(draw: random.Random, augment: Augment) -> Photometry:
    brightness = contrast = saturation = 1.0
    hue = 0.0
    if draw.random() < augment.jitter_probability:
        brightness = draw.uniform(1 - augment.brightness, 1 + augment.brightness)
        contrast = draw.uniform(1 - augment.contrast, 1 + augment.contrast)
        saturation = draw.uniform(1 - augment.saturation, 1 + augment.saturation)
        hue = draw.uniform(-augment.hue, augment.hue)
    if draw.random() < augment.greyscale_probability:
        saturation = 0.0
    return Photometry(brightness, contrast, saturation, hue)


def _draw_bands(draw: random.Random, augment: Augment, bands: int) -> Photometry:
    gain = offset = 0.0
    if draw.random() < augment.jitter_probability:
        gain, offset = augment.band_gain, augment.band_offset
    keep = [float(draw.random() >= augment.band_drop_probability) for _ in range(bands)]
    if not any(keep):
        keep[draw.randrange(bands)] = 1.0
    return Photometry(
        band_gain=tuple(draw.uniform(1 - gain, 1 + gain) for _ in range(bands)),
        band_offset=tuple(draw.uniform(-offset, offset) for _ in range(bands)),
        band_keep=tuple(keep),
    )


def worst_case_photometry(recipe: Recipe) -> Photometry:
    """Return every augmentation that `recipe` may draw, all at once: the parameters that need the most memory."""
    augment, bands = recipe.augment, recipe.encoder.bands
    if bands == 3:
        jitter = augment.jitter_probability > 0
        saturation = 0.0 if augment.greyscale_probability else 1 + augment.saturation * jitter
        brightness, contrast = 1 + augment.brightness * jitter, 1 + augment.contrast * jitter
        colours = Photometry(brightness, contrast, saturation, augment.hue * jitter)
    else:
        colours = Photometry(band_gain=(1.0,) * bands, band_offset=(0.0,) * bands, band_keep=(0.0,) * bands)
    sigma = _SIGMA_RANGE[1] * recipe.encoder.image_size / 224 if any(augment.blur_probability) else 0.0
    return replace(colours, blur_sigma=sigma, solarize=float(any(augment.solarize_probability)))
