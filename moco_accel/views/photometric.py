"""Photometric augmentation of a batch, each tile by its own parameters, on the device.

Functions with a trailing underscore change `pixels [tiles, bands, height, width]`, floats in [0, 1], in place, and keep
them in that range; parameters are one number per tile, or per tile and band. A neutral number leaves a tile as it was,
so that a batch needs no branches and nobody waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision's and Pillow's greyscale
_PLACES = 1 << 16
_SIGMAS = 3  # half a blur's kernel in standard deviations: 0.3 % of a Gaussian lie beyond


def _per_tile(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _grey(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    return red.mul(_LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def adjust_brightness_(pixels: Tensor, factor: Tensor) -> Tensor:
    """Neutral: 1."""
    return pixels.mul_(_per_tile(factor)).clamp_(0, 1)


def adjust_contrast_(pixels: Tensor, factor: Tensor) -> Tensor:
    """Of RGB: away from, or towards, the tile's mean grey. Neutral: 1."""
    mean = _grey(*pixels.mean((2, 3)).unbind(1))  # the mean of grey is the grey of means
    return pixels.mul_(_per_tile(factor)).add_(_per_tile(mean * (1 - factor))).clamp_(0, 1)


def adjust_saturation_(pixels: Tensor, factor: Tensor) -> Tensor:
    """Of RGB: away from, or towards, each pixel's grey: 0 is greyscale. Neutral: 1."""
    grey = _grey(*pixels.split(1, 1)).mul_(_per_tile(1 - factor))
    return pixels.mul_(_per_tile(factor)).add_(grey).clamp_(0, 1)


def adjust_hue_(pixels: Tensor, shift: Tensor) -> Tensor:
    """Turn RGB's hue by `shift` of the colour circle, in [-0.5, 0.5]. Neutral: 0."""
    red, green, blue = pixels.split(1, 1)
    lowest, value = pixels.amin(1, keepdim=True), pixels.amax(1, keepdim=True)
    chroma = value - lowest
    place = _sextant(pixels, value, chroma.clamp_min(1e-8).reciprocal_()).add_(_per_tile(6 * shift))
    place.sub_(place.div(6).floor_(), alpha=6)
    # each band lies above the lowest by chroma times a trapezoid over the colour circle
    torch.sub(place, 3, out=red).abs_().sub_(1)
    torch.sub(place, 2, out=green).abs_().neg_().add_(2)
    torch.sub(place, 4, out=blue).abs_().neg_().add_(2)
    return pixels.clamp_(0, 1).mul_(chroma).add_(lowest)


def _sextant(pixels: Tensor, value: Tensor, scale: Tensor) -> Tensor:
    """Hue of RGB in sixths of the colour circle, -1 to 5: red 0, green 2, blue 4. `value` the largest band, `scale` one
    over chroma, both `[tiles, 1, height, width]`, as is what returns."""
    red, green, blue = pixels.split(1, 1)
    # of three formulas that of the largest band holds; 1 for it and 0 for others is faster on a CPU than `where`
    is_red, is_green = (red - value).sign_().add_(1), (green - value).sign_().add_(1)
    place: Tensor = (red - green).mul_(scale).add_(4)
    place.add_(is_green.mul_((blue - red).mul_(scale).add_(2).sub_(place)))
    place.add_(is_red.mul_((green - blue).mul_(scale).sub_(place)))
    return place


def blur(pixels: Tensor, sigma: Tensor, largest_sigma: float) -> Tensor:
    """Gaussian blur of all tiles at once, edges reflected; `sigma` > 0 in pixels, none above `largest_sigma`."""
    tiles, bands, height, width = pixels.shape
    radius = _radius(largest_sigma, height, width)
    distance = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device).abs()
    kernel = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    kernel = kernel * (distance <= (_SIGMAS * sigma[:, None]).ceil())  # a tile's own width, whatever is beside it
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(bands, 0)[:, None]
    flat = functional.pad(pixels.reshape(1, tiles * bands, height, width), (radius,) * 4, mode="reflect")
    del pixels  # a selection of tiles lives no longer than it must
    flat = functional.conv2d(flat, kernel[:, :, :, None], groups=tiles * bands)
    flat = functional.conv2d(flat, kernel[:, :, None, :], groups=tiles * bands)
    return flat.reshape(tiles, bands, height, width)


def blur_tile(tile: Tensor, sigma: float) -> Tensor:
    """`blur` of one tile `[bands, height, width]`, as a sum of shifted tiles: faster on a CPU while they fit its cache.

    Shifts along rows, and by whole rows, of the padded tile as one line: what runs over a row's end lies in the border.
    """
    radius = _radius(sigma, *tile.shape[1:])
    weights = [math.exp(-0.5 * (distance / sigma) ** 2) for distance in range(radius + 1)]
    total = 2 * sum(weights) - weights[0]
    line = functional.pad(tile, (radius,) * 4, mode="reflect")
    shape = line.shape
    line = line.flatten()
    for step in (1, shape[2]):
        middle = line[radius * step : len(line) - radius * step] * (weights[0] / total)
        for distance in range(1, radius + 1):
            for start in (radius - distance, radius + distance):
                middle.add_(line[start * step : start * step + len(middle)], alpha=weights[distance] / total)
        line = middle
    rows = line.as_strided((shape[0], tile.shape[1], tile.shape[2]), (shape[1] * shape[2], shape[2], 1))
    return rows


def _radius(sigma: float, height: int, width: int) -> int:
    return min(math.ceil(_SIGMAS * sigma), height - 1, width - 1)


def solarize_(pixels: Tensor, chosen: Tensor) -> Tensor:
    """Invert pixels of at least one half where `chosen` is 1. Neutral: 0."""
    return torch.minimum(pixels, _per_tile(2 - chosen) - pixels, out=pixels)  # without it 2 - x, never the smaller


def scale_bands_(pixels: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Each band of each tile by its own gain and offset `[tiles, bands]`. Neutral: 1 and 0."""
    return pixels.mul_(gain[:, :, None, None]).add_(offset[:, :, None, None]).clamp_(0, 1)


def noise_banks(values: int, device: torch.device) -> Tensor:
    """Two banks of standard normal numbers, always the same, with windows for tiles of `values` at 65,536 places."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(2, values + _PLACES, generator=generator, device=device)


def add_noise_(pixels: Tensor, std: float, seeds: Sequence[int], banks: Tensor) -> Tensor:
    """Gaussian sensor noise of `std` (pixel range 1), each tile's from its own seed, whatever batch it is in.

    A tile's noise is the sum of a window of each bank, at two places that its seed names: white and Gaussian, and one
    of 4·10⁹, while to draw numbers tile by tile takes longer than all the rest of a view.
    """
    flat = pixels.view(len(pixels), -1)
    tiles, strength = list(flat.unbind(0)), std / math.sqrt(2)
    for bank, places in zip(
        banks, ([s % _PLACES for s in seeds], [s // _PLACES % _PLACES for s in seeds]), strict=True
    ):
        windows = [bank[place : place + flat.shape[1]] for place in places]
        torch._foreach_add_(tiles, windows, alpha=strength)
    return pixels.clamp_(0, 1)


def normalise_(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixels - mean) / std per band."""
    shift, scale = (torch.tensor(v).to(pixels.device, non_blocking=True) for v in (mean, [1 / s for s in std]))
    return pixels.sub_(shift[:, None, None]).mul_(scale[:, None, None])
