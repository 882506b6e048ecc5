"""The contrastive loss of MoCo v3 and the spread of features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(
    queries: Tensor, keys: Tensor, temperature: float, first_label: int = 0, queue: Tensor | None = None
) -> Tensor:
    """Return the InfoNCE loss of MoCo v3, computed in at least float32.

    The loss is 2 · temperature · cross-entropy of cosine similarities (arXiv 2104.02057, algorithm 1). Gradients flow
    through `queries` only.

    Args:
        queries: [n, dim].
        keys: [m, dim]; the positive of query i is row `first_label + i`.
        queue: Normalised keys [k, dim] that serve as further negatives.
    """
    queries, keys = _normalise(queries), _normalise(keys.detach())
    if queue is not None and len(queue):
        keys = torch.cat([keys, queue.to(keys.dtype)])
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ keys.T / temperature
    labels = torch.arange(first_label, first_label + len(queries), device=queries.device)
    cross_entropy: Tensor = functional.cross_entropy(logits, labels)
    return 2 * temperature * cross_entropy


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Return the spread of normalised features [n, dim]: 1 if evenly spread, 0 if collapsed.

    The spread is √dim times the mean standard deviation over tiles.
    """
    normalised = _normalise(features)
    spread: Tensor = normalised.std(0).mean() * features.shape[1] ** 0.5
    return spread


def _normalise(rows: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        return functional.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
