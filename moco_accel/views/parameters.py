"""What is drawn for one view of one tile: where it is cut, how it is turned, what happens to its colours or bands."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from moco_accel.recipe.data_sections import Augment
from moco_accel.recipe.schema import Recipe

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
    """Neutral values leave a tile as it is; see `photometric`. Sigma is in pixels of the crop.

    Brightness to hue are for three bands. Other numbers of bands have a gain, an offset and a 1 (keep) or 0 (drop) for
    each band, or no such tuples where nothing happens to them.
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


def draw_photometry(draw: random.Random, augment: Augment, view: int, image_size: int, bands: int) -> Photometry:
    """Colour jitter in the fixed order brightness, contrast, saturation, hue; greyscale is saturation 0.

    Bands other than three are jittered as often, each by itself, then dropped, but never all of a tile's.
    """
    colours = draw_colours(draw, augment) if bands == 3 else draw_bands(draw, augment, bands)
    sigma = 0.0
    if draw.random() < augment.blur_probability[view]:
        sigma = draw.uniform(*_SIGMA_RANGE) * image_size / 224
    return replace(colours, blur_sigma=sigma, solarize=float(draw.random() < augment.solarize_probability[view]))


def draw_colours(draw: random.Random, augment: Augment) -> Photometry:
    """Of three bands: brightness to hue, then greyscale."""
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


def draw_bands(draw: random.Random, augment: Augment, bands: int) -> Photometry:
    """Of any other number of bands: gain, offset and whether to keep it, for each."""
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


def heaviest_photometry(recipe: Recipe) -> Photometry:
    """Everything that `recipe` may draw for a tile, all at once: what takes the most memory."""
    augment, bands = recipe.augment, recipe.encoder.bands
    if bands == 3:
        jitter = augment.jitter_probability > 0
        saturation = 0.0 if augment.greyscale_probability else 1 + augment.saturation * jitter
        colours = Photometry(1 + augment.brightness * jitter, 1 + augment.contrast * jitter, saturation)
        colours = replace(colours, hue=augment.hue * jitter)
    else:
        colours = Photometry(band_gain=(1.0,) * bands, band_offset=(0.0,) * bands, band_keep=(0.0,) * bands)
    sigma = _SIGMA_RANGE[1] * recipe.encoder.image_size / 224 if any(augment.blur_probability) else 0.0
    return replace(colours, blur_sigma=sigma, solarize=float(any(augment.solarize_probability)))
