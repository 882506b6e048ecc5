"""Predicted memory of one device. Imports no torch, so that a cached plan loads fast."""

from __future__ import annotations

from pydantic import BaseModel

CATEGORIES = (
    "weights", "momentum_weights", "gradients", "optimizer_state", "activations", "heads", "inputs", "temporaries",
    "workspaces", "fragmentation", "context", "headroom",
)  # fmt: skip


class MemoryEstimate(BaseModel, frozen=True):
    """Predicted memory of one device, in bytes.

    Attributes:
        off_share: Relative error of the peak, see `prediction_error`.
        device_used_bytes: The reserved peak and the memory outside the allocator.
        breakdown_bytes: By category at the instant of the allocated peak; with fragmentation it sums to the reserved
            peak, with context and headroom to the card's memory.
        fits: `off_share` of the peak and the card's headroom stay free.
    """

    peak_reserved_bytes: int
    off_share: float
    peak_allocated_bytes: int
    device_used_bytes: int
    breakdown_bytes: dict[str, int]
    fits: bool
    headroom_bytes: int
    missing_bytes: int
    peak_operation: str
