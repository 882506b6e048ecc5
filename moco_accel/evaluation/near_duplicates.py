"""Test tiles that are also in training, whole or nearly: they flatter k nearest neighbours."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from moco_accel.evaluation.features import nearest_neighbours

SIDE = 8  # of a thumbnail, in pixels
NEAR = 0.1  # mean absolute difference of two thumbnails, over that of one from its own mean colour


@dataclass(frozen=True)
class Looks:
    """Of each tile: a checksum of its pixels, and its thumbnail float32 [N, bands · 64], in [0, 1]."""

    checksums: list[bytes]
    thumbnails: Tensor


@dataclass(frozen=True)
class Copies:
    """How many of `tested` tiles have the same pixels in training, and how many others nearly the same picture."""

    exact: int
    near: int
    tested: int

    @property
    def share(self) -> float:
        return (self.exact + self.near) / self.tested


def checksum(pixels: Tensor) -> bytes:
    """Of the shape and the pixels [bands, height, width]."""
    return hashlib.blake2b(f"{tuple(pixels.shape)}".encode() + pixels.numpy().tobytes(), digest_size=16).digest()


def thumbnail(pixels: Tensor) -> Tensor:
    """Means over 8 × 8 fields of pixels [bands, height, width], flat."""
    return adaptive_avg_pool2d(pixels[None], SIDE).flatten()


def find_copies(looks: Looks, train: Tensor, test: Tensor) -> Copies:
    """Among the tiles at indices `test` those that one at `train` equals, or is nearly.

    Nearly: thumbnails differ by a tenth of the tile's own contrast, so that one calm sea is no copy of another.
    """
    known = {looks.checksums[index] for index in train.tolist()}
    others = [index for index in test.tolist() if looks.checksums[index] not in known]
    near = 0
    if others:
        of_train, of_others = looks.thumbnails[train], looks.thumbnails[others]
        nearest = nearest_neighbours(of_train, of_others, 1, "euclidean").flatten()
        difference = (of_train[nearest] - of_others).abs().mean(dim=1)
        bands = of_others.unflatten(1, (-1, SIDE * SIDE))
        contrast = (bands - bands.mean(dim=2, keepdim=True)).abs().mean(dim=(1, 2))
        near = int((difference < NEAR * contrast).sum())
    return Copies(len(test) - len(others), near, len(test))
