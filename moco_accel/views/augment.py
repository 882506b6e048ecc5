"""Photometric augmentation and normalisation of crops, one micro-batch at a time, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from moco_accel.recipe.schema import Recipe
from moco_accel.views import photometric
from moco_accel.views.crops import CropBatch
from moco_accel.views.parameters import Photometry

_VALUES_IN_CACHE = 3 * 224 * 224  # values per part on a CPU: 600 kB of floats fit a core's own cache
_VALUES_ON_GPU = 32 * _VALUES_IN_CACHE  # more would fragment memory: 240 MiB for ViT-B in micro-batches of 64
_NEUTRAL = Photometry()
_COLOURS = {
    "brightness": photometric.adjust_brightness_,
    "contrast": photometric.adjust_contrast_,
    "saturation": photometric.adjust_saturation_,
    "hue": photometric.adjust_hue_,
}


class AugmentedView(Sequence[Tensor]):
    """One view of a device's tiles as micro-batches, each augmented on the device on access.

    Crops stay on the host. A micro-batch is the same on every access, so that a recomputed forward sees the same
    pixels. A single micro-batch is augmented once and kept.
    """

    def __init__(
        self, micro_batches: Sequence[CropBatch], recipe: Recipe, device: torch.device, on_gpu: bool | None = None
    ) -> None:
        """See `augment_pixels` for `on_gpu`."""
        self._micro_batches, self._recipe, self._device, self._on_gpu = micro_batches, recipe, device, on_gpu
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self._micro_batches)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if len(self) > 1:
            return self._augment(index)
        if self._kept is None:
            self._kept = self._augment(0)
        return [self._kept][index]

    def split(self, size: int) -> AugmentedView:
        """Return the same tiles in the same order in micro-batches of at most `size`; free augmented pixels."""
        self._kept = None
        batches = [part for batch in self._micro_batches for part in batch.split(size)]
        return AugmentedView(batches, self._recipe, self._device, self._on_gpu)

    def _augment(self, index: int) -> Tensor:
        batch = self._micro_batches[index]
        on_device = replace(batch, pixels=batch.pixels.to(self._device, non_blocking=True))
        # the step accesses micro-batches under autocast, which would blur in 16 bits
        with torch.autocast(self._device.type, enabled=False):
            return augment_pixels(on_device, self._recipe, self._on_gpu)


@torch.no_grad()
def augment_pixels(batch: CropBatch, recipe: Recipe, on_gpu: bool | None = None) -> Tensor:
    """Apply photometric augmentation, sensor noise and normalisation to crops; return float32 of the same shape.

    Noise is added before normalisation, in the pixel range [0, 1]. The batch is processed in parts: some 20 MB of
    pixels on a GPU, as many as fit the cache on a CPU.

    Args:
        batch: Crops, which are not changed.
        on_gpu: Compute as on a GPU; by default if the crops are on one. Traces on fake CPU tensors set it.
    """
    crops = batch.pixels
    if on_gpu is None:
        on_gpu = crops.device.type != "cpu"
    tiles_per_part = max(1, (_VALUES_ON_GPU if on_gpu else _VALUES_IN_CACHE) // crops[0].numel())
    parameters = _BatchParameters(batch.photometry, crops.device)
    banks = photometric.noise_banks(crops[0].numel(), crops.device) if recipe.augment.noise_std else None
    pixels = torch.empty(crops.shape, dtype=torch.float32, device=crops.device)
    for start in range(0, len(crops), tiles_per_part):
        part = slice(start, start + tiles_per_part)
        part_pixels = pixels[part].copy_(crops[part])
        if crops.dtype == torch.uint8:
            part_pixels.mul_(1 / 255)
        _apply_photometry_(part_pixels, parameters, part, on_gpu)
        if banks is not None:
            photometric.add_noise_(part_pixels, recipe.augment.noise_std, batch.noise_seeds[part], banks)
    photometric.normalise_(pixels, *recipe.normalisation)
    if (keep := parameters.get("band_keep", slice(None))) is not None:
        pixels.mul_(keep[:, :, None, None])  # a dropped band becomes its mean, which is 0 after normalisation
    return pixels


class _BatchParameters:
    """Parameters of a micro-batch, on the host to skip neutral ones, and on the device."""

    def __init__(self, photometry: Sequence[Photometry], device: torch.device) -> None:
        self.on_host = {name: [getattr(tile, name) for tile in photometry] for name in vars(_NEUTRAL)}
        self._on_device = {
            name: torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)
            for name, values in self.on_host.items()
            if any(value != getattr(_NEUTRAL, name) for value in values)
        }

    def get(self, name: str, part: slice) -> Tensor | None:
        """Return [tiles] or [tiles, bands] values of `part`; None if all are neutral."""
        if all(value == getattr(_NEUTRAL, name) for value in self.on_host[name][part]):
            return None
        return self._on_device[name][part]


def _apply_photometry_(pixels: Tensor, parameters: _BatchParameters, part: slice, on_gpu: bool) -> None:
    """Adjust colours or bands, blur, solarize; skip what is neutral for all tiles."""
    for name, adjust_ in _COLOURS.items():
        if (values := parameters.get(name, part)) is not None:
            adjust_(pixels, values)
    gain, offset = parameters.get("band_gain", part), parameters.get("band_offset", part)
    if gain is not None and offset is not None:
        photometric.scale_bands_(pixels, gain, offset)
    if (sigma := parameters.get("blur_sigma", part)) is not None:
        _blur_(pixels, parameters.on_host["blur_sigma"][part], sigma, on_gpu)
    if (solarize := parameters.get("solarize", part)) is not None:
        photometric.solarize_(pixels, solarize)


def _blur_(pixels: Tensor, host_sigmas: Sequence[float], sigma: Tensor, on_gpu: bool) -> None:
    """Blur the tiles whose sigma is not 0; the host values select them without a device synchronisation."""
    chosen = [tile for tile, value in enumerate(host_sigmas) if value]
    if not on_gpu:
        for tile in chosen:
            pixels[tile].copy_(photometric.blur_tile(pixels[tile], host_sigmas[tile]))
    elif len(chosen) == len(pixels):
        pixels.copy_(photometric.blur(pixels, sigma, max(host_sigmas)))
    else:
        indices = torch.tensor(chosen).to(pixels.device, non_blocking=True)
        blurred = photometric.blur(pixels.index_select(0, indices), sigma[indices], max(host_sigmas))
        pixels.index_copy_(0, indices, blurred)
