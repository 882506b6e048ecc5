"""One GPU and the memory that a training process can use on it."""

from __future__ import annotations

from dataclasses import dataclass

from planner.cards.catalogue import OLDEST_CAPABILITY

GIB, MIB = 1 << 30, 1 << 20
CONTEXT_BYTES = 426 * MIB  # seen on an RTX 6000 Ada with torch 2.10; 287 MB with lazy loading
NCCL_BYTES = 256 * MIB  # buffers outside the allocator: an allowance, not measured
DESKTOP_BYTES = GIB // 2  # a desktop on the card takes 0.3 to 0.8 GiB
HEADROOM_SHARE = 0.05


def round_up(size: int, unit: int) -> int:
    """Round `size` up to a multiple of `unit`."""
    return -(-size // unit) * unit


@dataclass(frozen=True)
class Card:
    """One GPU.

    Attributes:
        reported_bytes: Total memory that CUDA reports.
        compute_capability: 86 means 8.6.
        rates_of: Name of the card whose throughput and bandwidth are used, if they are not the card's own.
        product: The product name; None for a card that is known by size only.
        assumed: `reported_bytes` is assumed because no published figure was found.
        used_bytes: Memory that other processes use on a card of this machine; None if the card is elsewhere.
    """

    name: str
    marketed_gib: float
    reported_bytes: int
    compute_capability: int
    tensor_tflops: float
    bandwidth_gb_per_second: float
    rates_of: str | None = None
    product: str | None = None
    assumed: bool = False
    data_centre: bool = False
    used_bytes: int | None = None

    @property
    def has_bf16(self) -> bool:
        return self.compute_capability >= 80

    @property
    def precision(self) -> str:
        """The 16-bit format for training: bf16 from Ampere on, fp16 before."""
        return "bf16" if self.has_bf16 else "fp16"

    @property
    def requirement(self) -> str | None:
        """The PyTorch build that the card requires, if not every build supports it."""
        if self.compute_capability >= OLDEST_CAPABILITY:
            return None
        return "requires torch built for CUDA 12.6: CUDA 13 builds start at compute capability 7.5"

    @property
    def desktop_bytes(self) -> int:
        """Memory that other processes use: as seen on this machine, else an allowance for a desktop."""
        if self.used_bytes is not None:
            return self.used_bytes
        return 0 if self.data_centre else DESKTOP_BYTES

    def outside_bytes(self, num_devices: int) -> int:
        """Return the bytes of a process outside the allocator: CUDA context and, with several GPUs, NCCL buffers."""
        return CONTEXT_BYTES + (NCCL_BYTES if num_devices > 1 else 0)

    @property
    def headroom_bytes(self) -> int:
        """Memory that must stay free."""
        return int(self.reported_bytes * HEADROOM_SHARE)

    def budget_bytes(self, num_devices: int) -> int:
        """Return the bytes that the allocator may reserve."""
        return self.reported_bytes - self.desktop_bytes - self.headroom_bytes - self.outside_bytes(num_devices)

    def free_and_needed_bytes(self, peak_bytes: int, off_share: float, num_devices: int) -> tuple[int, int]:
        """Return the bytes that stay free beside a peak, and those that its relative error `off_share` requires."""
        free = self.budget_bytes(num_devices) + self.headroom_bytes - peak_bytes
        return free, max(self.headroom_bytes, int(off_share * peak_bytes))
