"""k nearest neighbours: classification of test tiles, and near-duplicates of training tiles, which inflate accuracy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from moco_accel.recipe.schema import Evaluation

Metric = Literal["cosine", "euclidean"]
MEAN_COLOUR = "_mean_colour"
"""Key suffix of the mean-colour baseline."""
_CHUNK_SIZE = 1024  # test tiles per similarity matrix; bounds its memory
_THUMBNAIL_SIDE = 8  # pixels
_MAX_DIFFERENCE = 0.1  # mean absolute difference of two thumbnails, relative to the contrast of one


def knn_metric(features: str) -> Metric:
    """Return `euclidean` for the mean colour, because cosine similarity discards brightness, else `cosine`."""
    return "euclidean" if features == MEAN_COLOUR else "cosine"


def predict_by_knn(
    train: Tensor, labels: Tensor, test: Tensor, num_classes: int, evaluation: Evaluation, metric: Metric = "cosine"
) -> Tensor:
    """Predict the class that the nearest training tiles vote for.

    With `cosine`, votes are weighted by exp(similarity / temperature) (Wu et al. 2018, section 3.4). With `euclidean`,
    all votes have the same weight. If there are fewer training tiles than neighbours, all of them vote. A tie goes to
    the lower class number.

    Args:
        train, labels: Features [N, D] and classes, int64 [N], of the training tiles.
        test: Features of the test tiles [M, D].
        evaluation: Section of the recipe with `neighbours` and `temperature`.

    Returns:
        Predicted classes, int64 [M].

    Raises:
        ValueError: If there are no training tiles or no test tiles.
    """
    if len(train) == 0 or len(test) == 0:
        raise ValueError(f"kNN needs training and test tiles; found {len(train)} training and {len(test)} test tiles")
    predicted = []
    for nearness, indices in _nearest(train, test, evaluation.neighbours, metric):
        weights = (nearness / evaluation.temperature).exp() if metric == "cosine" else torch.ones_like(nearness)
        votes = torch.zeros(len(indices), num_classes, dtype=weights.dtype)
        predicted.append(votes.scatter_add_(1, labels[indices], weights).argmax(dim=1))
    return torch.cat(predicted)


def nearest_neighbours(train: Tensor, test: Tensor, neighbours: int, metric: Metric = "cosine") -> Tensor:
    """Return the indices of the features in `train` [N, D] nearest to each feature in `test` [M, D], nearest first."""
    return torch.cat([indices for _, indices in _nearest(train, test, neighbours, metric)])


def _nearest(train: Tensor, test: Tensor, neighbours: int, metric: Metric) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield nearness (larger is nearer) and indices, both [chunk, neighbours], chunk by chunk of the test features."""
    neighbours = min(neighbours, len(train))
    if metric == "cosine":
        train, test = normalize(train, dim=1), normalize(test, dim=1)
    for chunk in torch.split(test, _CHUNK_SIZE):
        nearness = chunk @ train.T if metric == "cosine" else -torch.cdist(chunk, train)
        values, indices = nearness.topk(neighbours, dim=1)
        yield values, indices


@dataclass(frozen=True)
class Fingerprint:
    """Checksum of the pixels of a tile, and its thumbnail: means of 8 × 8 cells, float32 [bands · 64]."""

    checksum: bytes
    thumbnail: Tensor


@dataclass(frozen=True)
class DuplicateCounts:
    """Numbers of test tiles: with the pixels of a training tile, other near-duplicates of one, and in total."""

    exact: int
    near: int
    tested: int

    @property
    def share(self) -> float:
        """Return the share of test tiles that are duplicates or near-duplicates."""
        return (self.exact + self.near) / self.tested


def fingerprint(pixels: Tensor) -> Fingerprint:
    """Return the fingerprint of pixels [bands, height, width]."""
    content = f"{tuple(pixels.shape)}".encode() + pixels.numpy().tobytes()
    checksum = hashlib.blake2b(content, digest_size=16).digest()
    return Fingerprint(checksum, adaptive_avg_pool2d(pixels[None], _THUMBNAIL_SIDE).flatten())


def count_duplicates(train: Sequence[Fingerprint], test: Sequence[Fingerprint]) -> DuplicateCounts:
    """Count the test tiles that are duplicates or near-duplicates of a training tile.

    Thumbnails of near-duplicates differ by less than a tenth of the tile's own contrast, so that two tiles of calm sea
    are not near-duplicates.
    """
    known = {tile.checksum for tile in train}
    others = [tile for tile in test if tile.checksum not in known]
    near = 0
    if others:
        of_train, of_others = (torch.stack([tile.thumbnail for tile in tiles]) for tiles in (train, others))
        nearest = nearest_neighbours(of_train, of_others, 1, "euclidean").flatten()
        difference = (of_train[nearest] - of_others).abs().mean(dim=1)
        bands = of_others.unflatten(1, (-1, _THUMBNAIL_SIDE**2))
        contrast = (bands - bands.mean(dim=2, keepdim=True)).abs().mean(dim=(1, 2))
        near = int((difference < _MAX_DIFFERENCE * contrast).sum())
    return DuplicateCounts(len(test) - len(others), near, len(test))
