"""Features of a frozen encoder, and the mean-colour baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from moco_accel.common.errors import UserError
from moco_accel.evaluation.labelled_tiles import LabelledPool
from moco_accel.images.headers import DamagedTile
from moco_accel.processes.phases import tick
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.tiles import Tiles
from moco_accel.views.crops import to_pixels

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in greyscale JPEG


@torch.no_grad()  # not inference mode: parameters that FSDP2 gathers here are used in training as well
def extract_features(
    encoder: nn.Module,
    tiles: Tiles | LabelledPool,
    recipe: Recipe,
    device: torch.device | str,
    grey: bool = False,
    batch_size: int = 256,
    on_progress: Callable[[int], object] = lambda count: None,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Compute the encoder's features of tiles that are preprocessed as in training, without augmentation.

    Args:
        encoder: Encoder on `device`. It runs in eval mode; its mode is restored afterwards.
        grey: Whether to replace every band by the luma of the tile.
        batch_size: Tiles per forward pass.
        on_progress: Called with the number of tiles after each batch.
        indices: Tiles to read; None means all.

    Returns:
        Features on the CPU, float32 [tiles, D].

    Raises:
        UserError: If a tile is damaged.
    """
    size = recipe.encoder.image_size
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in recipe.normalisation)
    features: list[Tensor] = []
    with in_eval_mode(encoder):
        for batch in torch.tensor(range(len(tiles)) if indices is None else indices).split(batch_size):
            pixels = torch.stack([_resize(read_pixels(tiles, index, recipe), size, grey) for index in batch.tolist()])
            features.append(encoder(((pixels - mean) / std).to(device)).float().cpu())
            tick()
            on_progress(len(batch))
    return torch.cat(features)


@contextmanager
def in_eval_mode(encoder: nn.Module) -> Iterator[None]:
    """Put the encoder into eval mode, in which BatchNorm uses running statistics; restore its mode on exit."""
    was_training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(was_training)


def read_pixels(tiles: Tiles | LabelledPool, index: int, recipe: Recipe) -> Tensor:
    """Read a tile and scale it to [0, 1] as in training, float32 [bands, height, width].

    Raises:
        UserError: If the tile is damaged.
    """
    try:
        tile = tiles[index]
    except DamagedTile as reason:
        raise UserError(f"labelled tile {index} {reason}; build the labelled tiles again without it") from None
    return to_pixels(tile, recipe)


def _resize(pixels: Tensor, size: int, grey: bool) -> Tensor:
    if grey:
        pixels = to_grey(pixels)
    if pixels.shape[1:] != (size, size):
        pixels = interpolate(pixels[None], (size, size), mode="bilinear", antialias=True)[0]
    return pixels


def to_grey(pixels: Tensor) -> Tensor:
    """Replace every band of pixels [bands, height, width] by the luma, or by the mean of all bands if not RGB."""
    bands = pixels.shape[0]
    weights = pixels.new_tensor(_LUMA if bands == 3 else [1 / bands] * bands)
    return torch.einsum("c,chw->hw", weights, pixels).expand_as(pixels)


def mean_colour_features(tiles: Tiles | LabelledPool, recipe: Recipe, indices: Iterable[int]) -> Tensor:
    """Compute the band means in [0, 1] of the tiles at `indices`, float32 [tiles, bands].

    Raises:
        UserError: If a tile is damaged.
    """
    return torch.stack([read_pixels(tiles, index, recipe).mean(dim=(1, 2)) for index in indices])
