"""What features tell of themselves, without labels: spread, rank, alignment of views, uniformity on the sphere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, pdist


def rank_me(features: Tensor) -> float:
    """Effective rank of features [N, D]: exp of the entropy of their singular values (Garrido et al. 2023, RankMe).

    From 1, where all lie on a line, to min(N, D). Neither centred nor normalised, as in the paper.
    """
    singular = torch.linalg.svdvals(features.double())
    shares = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float((-torch.xlogy(shares, shares).sum()).exp())


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of normalised features of two views, [N, D] each; 0 is perfect (Wang and Isola 2020)."""
    return float((_on_sphere(first) - _on_sphere(second)).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """log of the mean over pairs of exp(-2 distance²), of normalised features [N, D]; 0 is one point, -4 is spread."""
    return float(pdist(_on_sphere(features)).square().mul(-2).exp().mean().log())


def _on_sphere(features: Tensor) -> Tensor:
    return normalize(features.double(), dim=1)
