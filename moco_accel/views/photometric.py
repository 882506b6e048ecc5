"""Photometric operations on a batch of pixels, with parameters of each tile.

Functions with a trailing underscore change pixels [tiles, bands, height, width] in place and return them; pixels are
floats in [0, 1] and stay in that range. Parameters are tensors [tiles] or [tiles, bands]. A neutral value leaves a tile
unchanged, so that a batch needs no branches and no device synchronisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision's and Pillow's greyscale
_WINDOWS = 1 << 16  # per noise bank
_SIGMAS = 3  # half width of a blur kernel in standard deviations; 0.3 % of a Gaussian lie beyond


def _per_tile(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _grey(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    return red.mul(_LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def adjust_brightness_(pixels: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor`. Neutral: 1."""
    return pixels.mul_(_per_tile(factor)).clamp_(0, 1)


def adjust_contrast_(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend RGB with the mean grey of the tile. Neutral: 1."""
    mean = _grey(*pixels.mean((2, 3)).unbind(1))  # the mean of grey is the grey of means
    return pixels.mul_(_per_tile(factor)).add_(_per_tile(mean * (1 - factor))).clamp_(0, 1)


def adjust_saturation_(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend RGB with the grey of each pixel; 0 is greyscale. Neutral: 1."""
    grey = _grey(*pixels.split(1, 1)).mul_(_per_tile(1 - factor))
    return pixels.mul_(_per_tile(factor)).add_(grey).clamp_(0, 1)


def adjust_hue_(pixels: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of RGB by `shift` of the colour circle, in [-0.5, 0.5]. Neutral: 0."""
    red, green, blue = pixels.split(1, 1)
    lowest, value = pixels.amin(1, keepdim=True), pixels.amax(1, keepdim=True)
    chroma = value - lowest
    hue = _hue_in_sixths(pixels, value, chroma.clamp_min(1e-8).reciprocal_()).add_(_per_tile(6 * shift))
    hue.sub_(hue.div(6).floor_(), alpha=6)
    # each band is the lowest value plus chroma times a trapezoid over the colour circle
    torch.sub(hue, 3, out=red).abs_().sub_(1)
    torch.sub(hue, 2, out=green).abs_().neg_().add_(2)
    torch.sub(hue, 4, out=blue).abs_().neg_().add_(2)
    return pixels.clamp_(0, 1).mul_(chroma).add_(lowest)


def _hue_in_sixths(pixels: Tensor, value: Tensor, scale: Tensor) -> Tensor:
    """Return the hue in sixths of the colour circle, -1 to 5: red 0, green 2, blue 4.

    `value` is the largest band and `scale` the reciprocal of chroma; both and the result are [tiles, 1, height, width].
    """
    red, green, blue = pixels.split(1, 1)
    # the largest band selects one of three formulas; multiplying by 0 or 1 is faster on a CPU than `where`
    is_red, is_green = (red - value).sign_().add_(1), (green - value).sign_().add_(1)
    hue: Tensor = (red - green).mul_(scale).add_(4)
    hue.add_(is_green.mul_((blue - red).mul_(scale).add_(2).sub_(hue)))
    hue.add_(is_red.mul_((green - blue).mul_(scale).sub_(hue)))
    return hue


def blur(pixels: Tensor, sigma: Tensor, largest_sigma: float) -> Tensor:
    """Blur all tiles at once by a Gaussian, with reflected edges.

    `sigma` holds standard deviations [tiles] in pixels, above 0; `largest_sigma` spares a device synchronisation.
    """
    tiles, bands, height, width = pixels.shape
    radius = _radius(largest_sigma, height, width)
    distance = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device).abs()
    kernel = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    kernel = kernel * (distance <= (_SIGMAS * sigma[:, None]).ceil())  # independent of the other tiles' sigmas
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(bands, 0)[:, None]
    flat = functional.pad(pixels.reshape(1, tiles * bands, height, width), (radius,) * 4, mode="reflect")
    del pixels  # frees a selection of tiles early
    flat = functional.conv2d(flat, kernel[:, :, :, None], groups=tiles * bands)
    flat = functional.conv2d(flat, kernel[:, :, None, :], groups=tiles * bands)
    return flat.reshape(tiles, bands, height, width)


def blur_tile(tile: Tensor, sigma: float) -> Tensor:
    """Blur one tile [bands, height, width] as `blur` does, by adding shifted copies: faster on a CPU.

    The padded tile is shifted as one flat line; values that cross the end of a row fall into the padding.
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
    return line.as_strided((shape[0], tile.shape[1], tile.shape[2]), (shape[1] * shape[2], shape[2], 1))


def _radius(sigma: float, height: int, width: int) -> int:
    return min(math.ceil(_SIGMAS * sigma), height - 1, width - 1)


def solarize_(pixels: Tensor, chosen: Tensor) -> Tensor:
    """Invert pixels of at least one half where `chosen` is 1. Neutral: 0."""
    return torch.minimum(pixels, _per_tile(2 - chosen) - pixels, out=pixels)  # with 0, 2 - x is never smaller than x


def scale_bands_(pixels: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Scale each band by its gain and offset [tiles, bands]. Neutral: 1 and 0."""
    return pixels.mul_(gain[:, :, None, None]).add_(offset[:, :, None, None]).clamp_(0, 1)


def noise_banks(values: int, device: torch.device) -> Tensor:
    """Return two fixed banks of standard normal numbers, each with 65,536 windows of `values` numbers."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(2, values + _WINDOWS, generator=generator, device=device)


def add_noise_(pixels: Tensor, std: float, seeds: Sequence[int], banks: Tensor) -> Tensor:
    """Add white Gaussian sensor noise of `std` in the pixel range [0, 1]; a tile's noise depends only on its seed.

    The noise is the sum of one window of each bank, one of 4·10⁹ combinations. Drawing new numbers for each tile would
    take longer than the rest of a view.
    """
    flat = pixels.view(len(pixels), -1)
    tiles, strength = list(flat.unbind(0)), std / math.sqrt(2)
    for bank, divisor in zip(banks, (1, _WINDOWS), strict=True):
        starts = [seed // divisor % _WINDOWS for seed in seeds]
        windows = [bank[start : start + flat.shape[1]] for start in starts]
        torch._foreach_add_(tiles, windows, alpha=strength)
    return pixels.clamp_(0, 1)


def normalise_(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise each band: (pixels - mean) / std."""
    shift, scale = (torch.tensor(v).to(pixels.device, non_blocking=True) for v in (mean, [1 / s for s in std]))
    return pixels.sub_(shift[:, None, None]).mul_(scale[:, None, None])
