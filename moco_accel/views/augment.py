"""Augmentation: crops on the CPU, as uint8 or float16; then the photometric part and normalisation on the device.

Satellite tiles have no up: quarter turns and both flips. Angles between would bend straight roads and leave black
corners. Sensor noise comes before normalisation, in the pixel range [0, 1].
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moco_accel.common.errors import UserError
from moco_accel.common.pixels import valid_pixels
from moco_accel.recipe.schema import Recipe
from moco_accel.views import photometric
from moco_accel.views.parameters import Geometry, Photometry, draw_geometry, draw_photometry, heaviest_photometry

__all__ = [
    "AugmentedView",
    "Crop",
    "CropBatch",
    "Geometry",
    "Photometry",
    "augment_pixels",
    "crop_dtype",
    "draw_geometry",
    "draw_photometry",
    "heaviest_photometry",
    "make_crop",
    "stack_crops",
]

_VALUES_IN_CACHE = 3 * 224 * 224  # what a CPU core works on at once: 600 kB of floats lie in its own cache
_VALUES_ON_GPU = 32 * _VALUES_IN_CACHE  # more leave holes in its memory: 240 MiB for ViT-B in micro-batches of 64
_NEUTRAL = Photometry()
_COLOURS = {
    "brightness": photometric.adjust_brightness_,
    "contrast": photometric.adjust_contrast_,
    "saturation": photometric.adjust_saturation_,
    "hue": photometric.adjust_hue_,
}


@dataclass(frozen=True)
class Crop:
    """One view of one tile before its photometric part: `[bands, size, size]`, uint8, or float16 in [0, 1]."""

    pixels: Tensor
    geometry: Geometry
    photometry: Photometry
    noise_seed: int


def crop_dtype(recipe: Recipe) -> torch.dtype:
    """Of the crops that wait for the device: 8-bit tiles stay so, others are scaled to [0, 1] before they are resized.

    float16 rounds pixels by at most 2.5e-4, a sixteenth of a step of 8 bits.
    """
    return torch.uint8 if recipe.data.scaling == "uint8" else torch.float16


def make_crop(tile: Tensor, recipe: Recipe, epoch: int, tile_index: int, view: int) -> Crop:
    """View 0 or 1 of a tile `[bands, height, width]` as stored: a function of (seed, epoch, tile, view) alone.

    Raises UserError where data.scaling does not go with the stored type.
    """
    draw = random.Random(f"{recipe.run.seed}/{epoch}/{tile_index}/{view}")
    bands, size = tile.shape[0], recipe.encoder.image_size
    geometry = draw_geometry(draw, recipe.augment, tile.shape[-2], tile.shape[-1])
    photometry = draw_photometry(draw, recipe.augment, view, size, bands)
    box = tile[:, geometry.top : geometry.top + geometry.height, geometry.left : geometry.left + geometry.width]
    pixels = resize(scale_stored(box, recipe), size).to(crop_dtype(recipe))
    return Crop(turn(pixels, geometry), geometry, photometry, draw.getrandbits(63))


def scale_stored(box: Tensor, recipe: Recipe) -> Tensor:
    """What is resized: `to_pixels`; with data.scaling uint8, stored values as they are."""
    if crop_dtype(recipe) == torch.uint8:
        if box.dtype != torch.uint8:
            raise UserError(
                f"data.scaling=uint8 but the tiles hold {str(box.dtype)[6:]}; data.scaling=percentiles works"
            )
        return box
    return to_pixels(box, recipe)


def to_pixels(tile: Tensor, recipe: Recipe) -> Tensor:
    """Stored values → float32 pixels in [0, 1] by recipe.stored_range; without data, the band's mean."""
    low, high = (torch.tensor(values)[:, None, None] for values in recipe.stored_range)
    pixels = (tile.to(torch.float32) - low).div_(high - low).clamp_(0, 1)
    if recipe.data.nodata is not None and (valid := valid_pixels(tile.numpy(), recipe.data.nodata)) is not None:
        mean = torch.tensor(recipe.normalisation[0])[:, None, None]
        pixels = torch.where(torch.from_numpy(valid), pixels, mean)
    return pixels


def resize(box: Tensor, size: int) -> Tensor:
    """Bilinear, antialiased, to `[bands, size, size]`; uint8 is worked on, and rounded, as uint8."""
    # with a pixel's bands side by side, as decoders leave them, uint8 takes half the time
    layout = torch.channels_last if box.dtype == torch.uint8 and len(box) <= 4 else torch.contiguous_format
    box = box[None].contiguous(memory_format=layout)
    return functional.interpolate(box, size=(size, size), mode="bilinear", antialias=True)[0]


def turn(pixels: Tensor, geometry: Geometry) -> Tensor:
    """Turn by quarters and flip: pixels change their places and nothing else. One copy, by numpy: torch takes two."""
    view, turns = pixels.numpy(), geometry.quarter_turns
    if turns % 2:
        view = view.swapaxes(1, 2)
    if geometry.vertical_flip != (turns in (1, 2)):
        view = view[:, ::-1]
    if geometry.horizontal_flip != (turns in (2, 3)):
        view = view[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(view))


@dataclass(frozen=True)
class CropBatch:
    """One view of one micro-batch, on the host: pixels as in a `Crop`, what is drawn and a noise seed for each tile."""

    pixels: Tensor
    photometry: list[Photometry]
    noise_seeds: list[int]

    def pin_memory(self) -> CropBatch:
        return CropBatch(self.pixels.pin_memory(), self.photometry, self.noise_seeds)

    def split(self, size: int) -> list[CropBatch]:
        parts = [slice(start, start + size) for start in range(0, len(self.pixels), size)]
        return [CropBatch(self.pixels[part], self.photometry[part], self.noise_seeds[part]) for part in parts]


def stack_crops(crops: Sequence[Crop]) -> CropBatch:
    pixels = torch.stack([crop.pixels for crop in crops])
    return CropBatch(pixels, [crop.photometry for crop in crops], [crop.noise_seed for crop in crops])


class AugmentedView(Sequence[Tensor]):
    """One view of a device's tiles as micro-batches, each moved to the device and augmented when asked for.

    Only crops wait, on the host. A micro-batch comes out the same each time, so that a recomputed forward sees
    the pixels that the first one saw; a single micro-batch is made once and kept. `on_gpu`: see `augment_pixels`.
    """

    def __init__(
        self, micro_batches: Sequence[CropBatch], recipe: Recipe, device: torch.device, on_gpu: bool | None = None
    ) -> None:
        self._micro_batches, self._recipe, self._device, self._on_gpu = micro_batches, recipe, device, on_gpu
        self._only: Tensor | None = None

    def __len__(self) -> int:
        return len(self._micro_batches)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if len(self) > 1:
            return self._make(index)
        if self._only is None:
            self._only = self._make(0)
        return [self._only][index]

    def in_micro_batches(self, size: int) -> AugmentedView:
        """The same tiles in the same order, at most `size` at a time. Pixels that were made are let go."""
        self._only = None
        batches = [part for batch in self._micro_batches for part in batch.split(size)]
        return AugmentedView(batches, self._recipe, self._device, self._on_gpu)

    def _make(self, index: int) -> Tensor:
        batch = self._micro_batches[index]
        crops = batch.pixels.to(self._device, non_blocking=True)
        # a micro-batch may be made in the midst of the step, whose autocast would blur in 16 bits
        with torch.autocast(self._device.type, enabled=False):
            return augment_pixels(crops, batch.photometry, batch.noise_seeds, self._recipe, self._on_gpu)


@torch.no_grad()
def augment_pixels(
    crops: Tensor,
    photometry: Sequence[Photometry],
    noise_seeds: Sequence[int],
    recipe: Recipe,
    on_gpu: bool | None = None,
) -> Tensor:
    """The photometric part and normalisation of uint8 crops, or of floats in [0, 1]: float32 of the same shape.

    A GPU works on some 20 MB of pixels at once, a CPU on as many as its cache holds. `on_gpu` None: where crops are;
    a trace of a GPU's step on fake CPU tensors says True.
    """
    if on_gpu is None:
        on_gpu = crops.device.type != "cpu"
    at_once = max(1, (_VALUES_ON_GPU if on_gpu else _VALUES_IN_CACHE) // crops[0].numel())
    parameters = _Parameters(photometry, crops.device)
    banks = photometric.noise_banks(crops[0].numel(), crops.device) if recipe.augment.noise_std else None
    pixels = torch.empty(crops.shape, dtype=torch.float32, device=crops.device)
    for start in range(0, len(crops), at_once):
        part = slice(start, start + at_once)
        some = pixels[part].copy_(crops[part])
        if crops.dtype == torch.uint8:
            some.mul_(1 / 255)
        _change_(some, parameters, part, on_gpu)
        if banks is not None:
            photometric.add_noise_(some, recipe.augment.noise_std, noise_seeds[part], banks)
    photometric.normalise_(pixels, *recipe.normalisation)
    if (keep := parameters.of(slice(None), "band_keep")) is not None:
        pixels.mul_(keep[:, :, None, None])  # a dropped band is its mean, which is 0 by now
    return pixels


class _Parameters:
    """What is drawn for the tiles of a micro-batch: on the host, to leave out what is neutral, and on the device."""

    def __init__(self, photometry: Sequence[Photometry], device: torch.device) -> None:
        self.on_host = {name: [getattr(tile, name) for tile in photometry] for name in vars(_NEUTRAL)}
        self._on_device = {
            name: torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)
            for name, values in self.on_host.items()
            if any(value != getattr(_NEUTRAL, name) for value in values)
        }

    def of(self, part: slice, name: str) -> Tensor | None:
        """A number, or one per band, for each tile of `part`; None where all are neutral."""
        if all(value == getattr(_NEUTRAL, name) for value in self.on_host[name][part]):
            return None
        return self._on_device[name][part]


def _change_(pixels: Tensor, parameters: _Parameters, part: slice, on_gpu: bool) -> None:
    """Colours or bands, blur, solarize; what is neutral for all tiles is left out."""
    for name, adjust_ in _COLOURS.items():
        if (numbers := parameters.of(part, name)) is not None:
            adjust_(pixels, numbers)
    gain, offset = parameters.of(part, "band_gain"), parameters.of(part, "band_offset")
    if gain is not None and offset is not None:
        photometric.scale_bands_(pixels, gain, offset)
    if (sigma := parameters.of(part, "blur_sigma")) is not None:
        _blur_(pixels, parameters.on_host["blur_sigma"][part], sigma, on_gpu)
    if (chosen := parameters.of(part, "solarize")) is not None:
        photometric.solarize_(pixels, chosen)


def _blur_(pixels: Tensor, on_host: Sequence[float], sigma: Tensor, on_gpu: bool) -> None:
    """Blur the tiles whose sigma is not 0; the host knows which, so that nobody waits for the device."""
    chosen = [tile for tile, value in enumerate(on_host) if value]
    if not on_gpu:
        for tile in chosen:
            pixels[tile].copy_(photometric.blur_tile(pixels[tile], on_host[tile]))
    elif len(chosen) == len(pixels):
        pixels.copy_(photometric.blur(pixels, sigma, max(on_host)))
    else:
        which = torch.tensor(chosen).to(pixels.device, non_blocking=True)
        blurred = photometric.blur(pixels.index_select(0, which), sigma[which], max(on_host))
        pixels.index_copy_(0, which, blurred)
