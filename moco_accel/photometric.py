"""Photometric augmentation of a batch, each tile by its own parameters, on the device.

Every function takes pixels `[tiles, bands, height, width]` as floats in [0, 1] and one number per tile, and returns
the same shape in the same range. A neutral number leaves a tile as it was, so a batch needs no branches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision's and Pillow's greyscale


def _per_tile(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def grey(pixels: Tensor) -> Tensor:
    """Luma of RGB, the mean of any other number of bands: `[tiles, 1, height, width]`."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    weights = torch.tensor(_LUMA, dtype=pixels.dtype).to(pixels.device)
    return (pixels * weights[:, None, None]).sum(1, keepdim=True)


def adjust_brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Neutral: 1."""
    return (pixels * _per_tile(factor)).clamp(0, 1)


def adjust_contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, the tile's mean grey. Neutral: 1."""
    mean = grey(pixels).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, pixels, _per_tile(factor)).clamp(0, 1)


def adjust_saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, each pixel's grey: 0 is greyscale. Neutral: 1."""
    return torch.lerp(grey(pixels), pixels, _per_tile(factor)).clamp(0, 1)


def adjust_hue(pixels: Tensor, shift: Tensor) -> Tensor:
    """Turn RGB's hue by `shift` of the colour circle, in [-0.5, 0.5]. Neutral: 0."""
    value, lowest = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    chroma = value - lowest
    red, green, blue = (pixels / chroma.clamp_min(1e-8)).split(1, dim=1)
    level = value / chroma.clamp_min(1e-8)
    sextant = torch.where(red == level, green - blue, torch.where(green == level, 2 + blue - red, 4 + red - green))
    sextant = sextant + 6 * _per_tile(shift)
    # each band falls from `value` by `chroma` times a trapezoid over the colour circle
    offsets = torch.tensor([5.0, 3.0, 1.0], dtype=pixels.dtype).to(pixels.device)[:, None, None]
    place = torch.remainder(offsets + sextant, 6)
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)


def blur(pixels: Tensor, sigma: Tensor, largest_sigma: float) -> Tensor:
    """Gaussian blur, `sigma` in pixels, edges reflected; `largest_sigma` sets the kernel's width. Neutral: 0."""
    tiles, bands, height, width = pixels.shape
    radius = min(math.ceil(3 * largest_sigma), height - 1, width - 1)
    distance = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-0.5 * (distance / sigma.clamp_min(1e-3)[:, None]) ** 2)  # at σ = .001 px: one pixel alone
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(bands, 0)[:, None]
    flat = pixels.reshape(1, tiles * bands, height, width)
    flat = functional.pad(flat, (radius, radius, radius, radius), mode="reflect")
    flat = functional.conv2d(flat, kernel[:, :, :, None], groups=tiles * bands)
    flat = functional.conv2d(flat, kernel[:, :, None, :], groups=tiles * bands)
    return flat.reshape(pixels.shape)


def solarize(pixels: Tensor, chosen: Tensor) -> Tensor:
    """Invert pixels of at least one half in chosen tiles. Neutral: 0."""
    return torch.where((_per_tile(chosen) > 0) & (pixels >= 0.5), 1 - pixels, pixels)


def add_noise(pixels: Tensor, std: float, seeds: Sequence[int]) -> Tensor:
    """Gaussian sensor noise of `std` (pixel range 1), each tile's from its own seed, whatever batch it is in."""
    generator = torch.Generator(pixels.device)
    noise = torch.empty_like(pixels)
    for tile, seed in zip(noise, seeds, strict=True):
        tile.normal_(0.0, std, generator=generator.manual_seed(seed))
    return (pixels + noise).clamp_(0, 1)


def normalise(pixels: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """(pixels - mean) / std per band."""
    shift, scale = (torch.tensor(v, dtype=pixels.dtype).to(pixels.device)[:, None, None] for v in (mean, std))
    return (pixels - shift) / scale
