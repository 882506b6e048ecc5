"""How good are frozen features: k nearest neighbours, beside what needs no pretraining at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from moco_accel.common.errors import UserError
from moco_accel.images.decoding import DamagedTile
from moco_accel.processes.phases import tick
from moco_accel.recipe.schema import Recipe
from moco_accel.views.augment import to_pixels

if TYPE_CHECKING:
    from moco_accel.tiles.tiles import Tiles

Metric = Literal["cosine", "euclidean"]
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in greyscale JPEG
_QUERIES_AT_ONCE = 1024  # bounds the similarity matrix


@torch.no_grad()  # no inference mode: what FSDP2 gathers here serves training too
def extract_features(
    encoder: nn.Module,
    tiles: Tiles,
    recipe: Recipe,
    device: torch.device | str,
    grey: bool = False,
    batch_size: int = 256,
    on_progress: Callable[[int], None] | None = None,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Features float32 [N, D] of all tiles, or of those at `indices`; on the CPU.

    `encoder` must be on `device` and keeps its train mode.

    Each tile is scaled to [0, 1] as in training, made grey if asked (all bands become its luma), resized to
    `encoder.image_size`, and normalised. `on_progress(n)` hears of every n tiles done. Raises UserError when one is
    damaged: a figure is of all tiles or of none.
    """
    size = recipe.encoder.image_size
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in recipe.normalisation)
    features: list[Tensor] = []
    with in_eval_mode(encoder):
        for some in torch.tensor(range(len(tiles)) if indices is None else indices).split(batch_size):
            pixels = torch.stack([_resized(read_pixels(tiles, index, recipe), size, grey) for index in some.tolist()])
            features.append(encoder(((pixels - mean) / std).to(device)).float().cpu())
            tick()
            if on_progress:
                on_progress(len(some))
    return torch.cat(features)


@contextmanager
def in_eval_mode(encoder: nn.Module) -> Iterator[None]:
    """BatchNorm by its running statistics; afterwards as before."""
    was_training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(was_training)


def read_pixels(tiles: Tiles, index: int, recipe: Recipe) -> Tensor:
    """Tile [C, H, W] as stored → float32 in [0, 1], as in training. Raises UserError when it is damaged."""
    try:
        tile = tiles[index]
    except DamagedTile as reason:
        raise UserError(f"labelled tile {index} {reason}; make the labelled tiles again without it") from None
    return to_pixels(tile, recipe)


def _resized(pixels: Tensor, size: int, grey: bool) -> Tensor:
    """[C, H, W] → [C, size, size], grey if asked."""
    if grey:
        pixels = to_grey(pixels)
    if pixels.shape[1:] != (size, size):
        pixels = interpolate(pixels[None], (size, size), mode="bilinear", antialias=True)[0]
    return pixels


def to_grey(pixels: Tensor) -> Tensor:
    """Luma of [C, H, W], repeated over its bands; the mean of the bands where they are not red, green and blue."""
    bands = pixels.shape[0]
    weights = pixels.new_tensor(_LUMA if bands == 3 else [1 / bands] * bands)
    return torch.einsum("c,chw->hw", weights, pixels).expand_as(pixels)


def mean_colour_features(tiles: Tiles, recipe: Recipe) -> Tensor:
    """Mean of each band in [0, 1], float32 [N, C]: the baseline that any pretraining has to beat."""
    return torch.stack([read_pixels(tiles, index, recipe).mean(dim=(1, 2)) for index in range(len(tiles))])


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    neighbours: int = 20,
    temperature: float = 0.07,
    *,
    num_classes: int,
    metric: Metric = "cosine",
) -> float:
    """Share of test features [M, D] whose class, of labels [N], [M], their `neighbours` nearest train features vote.

    `cosine`: votes weigh exp(similarity / temperature), as in Wu et al. 2018 (section 3.4). `euclidean`: votes weigh
    the same, for features whose length matters, such as the mean colour. Fewer than `neighbours` train features all
    vote; a tie goes to the lower class number.
    """
    if len(test_labels) == 0 or len(train_labels) == 0:
        raise ValueError(
            f"kNN wants tiles on both sides: {len(train_labels)} to learn from, {len(test_labels)} to test"
        )
    predicted = knn_predictions(
        train_features, train_labels, test_features, neighbours, temperature, num_classes, metric
    )
    return int((predicted == test_labels).sum()) / len(test_labels)


def knn_predictions(
    train: Tensor, labels: Tensor, test: Tensor, neighbours: int, temperature: float, num_classes: int, metric: Metric
) -> Tensor:
    """Class numbers int64 [M] that the nearest of `train` [N, D] vote for `test` [M, D], as `knn_accuracy` counts."""
    predicted = []
    for closeness, indices in _nearest(train, test, neighbours, metric):
        weights = (closeness / temperature).exp() if metric == "cosine" else torch.ones_like(closeness)
        votes = torch.zeros(len(indices), num_classes, dtype=weights.dtype)
        predicted.append(votes.scatter_add_(1, labels[indices], weights).argmax(dim=1))
    return torch.cat(predicted)


def nearest_neighbours(
    train_features: Tensor, test_features: Tensor, neighbours: int, metric: Metric = "cosine"
) -> Tensor:
    """Indices [M, neighbours] into train features [N, D], nearest first, for each of the test features [M, D]."""
    return torch.cat([indices for _, indices in _nearest(train_features, test_features, neighbours, metric)])


def _nearest(train: Tensor, test: Tensor, neighbours: int, metric: Metric) -> Iterator[tuple[Tensor, Tensor]]:
    """Closeness (larger is nearer) and indices, both [chunk, neighbours], chunk by chunk of the test features."""
    neighbours = min(neighbours, len(train))
    if metric == "cosine":
        train, test = normalize(train, dim=1), normalize(test, dim=1)
    for chunk in torch.split(test, _QUERIES_AT_ONCE):
        closeness = chunk @ train.T if metric == "cosine" else -torch.cdist(chunk, train)
        values, indices = closeness.topk(neighbours, dim=1)
        yield values, indices
