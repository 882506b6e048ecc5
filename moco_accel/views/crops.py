"""Cut a random crop from a tile on the CPU, resize it, and rotate and flip it.

Satellite tiles have no upright orientation, so quarter turns and both flips are used. Other angles would bend straight
roads and leave black corners.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moco_accel.common.errors import UserError
from moco_accel.common.pixels import valid_pixels
from moco_accel.recipe.schema import Recipe
from moco_accel.views.parameters import Geometry, Photometry, draw_geometry, draw_photometry

_LARGE = 1e30  # leaves float32 room for arithmetic


@dataclass(frozen=True)
class Crop:
    """One view of one tile before photometric augmentation.

    Attributes:
        pixels: [bands, size, size], uint8, or float16 in [0, 1].
    """

    pixels: Tensor
    geometry: Geometry
    photometry: Photometry
    noise_seed: int


@dataclass(frozen=True)
class CropBatch:
    """Crops of one view of one micro-batch, on the host; the fields are those of `Crop`, for each tile."""

    pixels: Tensor
    photometry: list[Photometry]
    noise_seeds: list[int]

    def pin_memory(self) -> CropBatch:
        """Return the batch in pinned memory."""
        return replace(self, pixels=self.pixels.pin_memory())

    def split(self, size: int) -> list[CropBatch]:
        """Return batches of at most `size` tiles, in order."""
        parts = [slice(start, start + size) for start in range(0, len(self.pixels), size)]
        return [CropBatch(self.pixels[part], self.photometry[part], self.noise_seeds[part]) for part in parts]


def stack_crops(crops: Sequence[Crop]) -> CropBatch:
    """Return crops as one batch."""
    pixels = torch.stack([crop.pixels for crop in crops])
    return CropBatch(pixels, [crop.photometry for crop in crops], [crop.noise_seed for crop in crops])


def crop_dtype(recipe: Recipe) -> torch.dtype:
    """Return the type of crops: uint8 for 8-bit tiles; float16 for others, which are scaled to [0, 1] before resizing.

    float16 rounds pixels by at most 2.5e-4, a sixteenth of a step of 8 bits.
    """
    return torch.uint8 if recipe.data.scaling == "uint8" else torch.float16


def make_crop(tile: Tensor, recipe: Recipe, epoch: int, tile_index: int, view: int) -> Crop:
    """Make view 0 or 1 of a tile [bands, height, width]; it depends only on seed, epoch, tile and view.

    Raises:
        UserError: If `data.scaling` does not suit the stored type.
    """
    draw = random.Random(f"{recipe.run.seed}/{epoch}/{tile_index}/{view}")
    bands, size = tile.shape[0], recipe.encoder.image_size
    geometry = draw_geometry(draw, recipe.augment, tile.shape[-2], tile.shape[-1])
    photometry = draw_photometry(draw, recipe.augment, view, size, bands)
    box = tile[:, geometry.top : geometry.top + geometry.height, geometry.left : geometry.left + geometry.width]
    pixels = resize(scale_stored(box, recipe), size).to(crop_dtype(recipe))
    return Crop(rotate_and_flip(pixels, geometry), geometry, photometry, draw.getrandbits(63))


def scale_stored(box: Tensor, recipe: Recipe) -> Tensor:
    """Return stored values as `to_pixels` scales them; unchanged with `data.scaling=uint8`.

    Raises:
        UserError: If `data.scaling=uint8` and the values have another type.
    """
    if crop_dtype(recipe) != torch.uint8:
        return to_pixels(box, recipe)
    if box.dtype != torch.uint8:
        raise UserError(f"data.scaling=uint8 but the tiles hold {str(box.dtype)[6:]}; data.scaling=percentiles works")
    return box


def to_pixels(tile: Tensor, recipe: Recipe) -> Tensor:
    """Scale stored values to float32 pixels in [0, 1] by `recipe.stored_range`; no data becomes the band's mean."""
    edges = recipe.stored_range
    low, high = (torch.tensor(values, dtype=_arithmetic(*edges))[:, None, None] for values in edges)
    pixels = (tile.to(low.dtype) - low).div_(high - low).clamp_(0, 1).to(torch.float32)
    has_marks = recipe.data.nodata is not None or tile.is_floating_point()
    if has_marks and (valid := valid_pixels(tile.numpy(), recipe.data.nodata)) is not None:
        mean = torch.tensor(recipe.normalisation[0])[:, None, None]
        pixels = torch.where(torch.from_numpy(valid), pixels, mean)
    return pixels


def _arithmetic(low: Sequence[float], high: Sequence[float]) -> torch.dtype:
    """Return the type that scales without overflow: float32 for all but extreme values."""
    largest = max(map(abs, (*low, *high)))
    least = min(above - below for below, above in zip(low, high, strict=True))
    return torch.float32 if largest < _LARGE and least > 1 / _LARGE else torch.float64


def resize(box: Tensor, size: int) -> Tensor:
    """Resize to [bands, size, size], bilinear and antialiased; uint8 is computed and rounded as uint8."""
    # channels_last, as decoders return pixels, halves the time for uint8
    layout = torch.channels_last if box.dtype == torch.uint8 and len(box) <= 4 else torch.contiguous_format
    box = box[None].contiguous(memory_format=layout)
    return functional.interpolate(box, size=(size, size), mode="bilinear", antialias=True)[0]


def rotate_and_flip(pixels: Tensor, geometry: Geometry) -> Tensor:
    """Return `pixels` rotated by quarter turns and flipped, in one copy (torch would make two)."""
    view, turns = pixels.numpy(), geometry.quarter_turns
    if turns % 2:
        view = view.swapaxes(1, 2)
    if geometry.vertical_flip != (turns in (1, 2)):
        view = view[:, ::-1]
    if geometry.horizontal_flip != (turns in (2, 3)):
        view = view[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(view))
