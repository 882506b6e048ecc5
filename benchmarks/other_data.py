"""Build two-view pipelines and photometric augmentation of other libraries on the CPU, for `data.py`.

A pipeline takes encoded JPEG tiles and returns two normalised views of each, 224 pixels a side. Building one raises
ImportError if its library is not installed.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms

from moco_accel.images.decoding import decode_raster
from moco_accel.recipe.schema import IMAGENET_MEAN, IMAGENET_STD

SIDE = 224
Views = Callable[[Sequence[bytes]], tuple[Tensor, Tensor]]


def paper() -> tuple[str, Views]:
    """Build MoCo v3's augmentation for a ViT from the paper's table, with torchvision and Pillow, tile by tile."""

    def blurred(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

    def of_view(blur: float, solarize: float) -> transforms.Compose:
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(SIDE, scale=(0.08, 1.0)),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                transforms.RandomGrayscale(0.2),
                transforms.RandomApply([transforms.Lambda(blurred)], p=blur),
                transforms.RandomApply([transforms.Lambda(ImageOps.solarize)], p=solarize),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    import torchvision

    return f"torchvision {torchvision.__version__}", _by_tile(of_view(1.0, 0.0), of_view(0.1, 0.2))


def lightly() -> tuple[str, Views]:
    """Build lightly's MoCo v2 transform: it has no solarization, and blurs half of the tiles of both views."""
    import lightly as package
    from lightly.transforms import MoCoV2Transform

    transform = MoCoV2Transform(input_size=SIDE)
    return f"lightly {package.__version__}", _by_tile(*transform.transforms)


def _by_tile(first: Callable[[Image.Image], Tensor], second: Callable[[Image.Image], Tensor]) -> Views:
    def views(tiles: Sequence[bytes]) -> tuple[Tensor, Tensor]:
        pairs = []
        for raw in tiles:
            image = Image.open(io.BytesIO(raw)).convert("RGB")
            pairs.append((first(image), second(image)))
        one, two = zip(*pairs, strict=True)
        return torch.stack(one), torch.stack(two)

    return views


def torchgeo() -> tuple[str, Views]:
    """Build torchgeo's batched augmentation for MoCo v3 by kornia: no saturation and hue. `decode_raster` decodes."""
    import torchgeo as package
    from torchgeo.trainers.moco import moco_augmentations

    first, second = moco_augmentations(3, SIDE, torch.tensor([0.2989, 0.587, 0.114]))
    normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)

    @torch.no_grad()
    def views(tiles: Sequence[bytes]) -> tuple[Tensor, Tensor]:
        pixels = torch.stack([decode_raster(raw) for raw in tiles]).float() / 255
        return normalise(first(pixels)), normalise(second(pixels))

    return f"torchgeo {package.__version__}", views


def kornia_photometric() -> tuple[str, Callable[[Tensor], Tensor]]:
    """Build the photometric part of MoCo v3's view 1 by kornia, with parameters per tile, on crops in [0, 1]."""
    import kornia
    from kornia import augmentation

    change = augmentation.AugmentationSequential(
        augmentation.ColorJiggle(0.4, 0.4, 0.2, 0.1, p=0.8, same_on_batch=False),
        augmentation.RandomGrayscale(p=0.2, same_on_batch=False),
        augmentation.RandomGaussianBlur((13, 13), (0.1, 2.0), p=1.0, same_on_batch=False),
        augmentation.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
        data_keys=["input"],
    )

    @torch.no_grad()
    def photometric(pixels: Tensor) -> Tensor:
        return change(pixels)

    return f"kornia {kornia.__version__}", photometric


OTHERS = {"lightly's MoCo v2 transform": lightly, "torchgeo's MoCo v3 augmentation": torchgeo}
