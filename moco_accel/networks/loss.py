"""The contrastive loss of MoCo v3: pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(
    queries: Tensor, keys: Tensor, temperature: float, first_label: int = 0, queue: Tensor | None = None
) -> Tensor:
    """2 T · cross-entropy of normalised similarities (MoCo v3, algorithm 1), in at least float32.

    `queries [n, dim]`; `keys [m, dim]`, query i's positive in row `first_label + i`; `queue [k, dim]` holds further
    negatives, normalised. Gradient flows through `queries` alone.
    """
    queries, keys = _normalised(queries), _normalised(keys.detach())
    if queue is not None and len(queue):
        keys = torch.cat([keys, queue.to(keys.dtype)])
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ keys.T / temperature
    labels = torch.arange(first_label, first_label + len(queries), device=queries.device)
    cross_entropy: Tensor = functional.cross_entropy(logits, labels)
    return 2 * temperature * cross_entropy


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Spread of normalised features: √dim · mean standard deviation. 1 is evenly spread, 0 is collapsed."""
    normalised = _normalised(features)
    spread: Tensor = normalised.std(0).mean() * features.shape[1] ** 0.5
    return spread


def _normalised(rows: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        return functional.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
