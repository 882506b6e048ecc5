"""Cards: what their makers sell, what CUDA reports, and what a training process can have of it.

Rates are dense 16-bit tensor throughput with fp32 accumulation, and memory bandwidth, from the makers' data sheets.
"""

from __future__ import annotations

from dataclasses import dataclass

from moco_accel.recipe_text import RecipeError

GIB, MIB = 1 << 30, 1 << 20
REPORTED_SHARE = 0.9725  # an RTX 3070 sold as 8 GB reports 7.78 GiB; ECC cards report less still
CONTEXT_BYTES = 426 * MIB  # seen on an RTX 6000 Ada with 2.10; 287 MB with lazy loading
NCCL_BYTES = 256 * MIB  # its buffers, outside the allocator; an allowance, not measured
DESKTOP_BYTES = GIB // 2  # a desktop on the card takes 0.3 to 0.8 GiB
HEADROOM_SHARE = 0.05
UTILISATION = 0.35
"""Share of a card's peak rate that training reaches; usual for ViTs in 16 bits, and a guess for any one card."""


@dataclass(frozen=True)
class Card:
    """One GPU. `reported_bytes` is what CUDA calls total memory; `compute_capability` 86 means 8.6."""

    name: str
    marketed_gib: float
    reported_bytes: int
    compute_capability: int
    tensor_tflops: float
    bandwidth_gb_per_second: float
    rates_of: str | None = None

    @property
    def bf16(self) -> bool:
        return self.compute_capability >= 80

    @property
    def precision(self) -> str:
        """The 16-bit format the card computes in: bf16 from Ampere on, fp16 before."""
        return "bf16" if self.bf16 else "fp16"

    def outside_bytes(self, num_devices: int) -> int:
        """What a process takes outside the allocator: the CUDA context and, with several GPUs, NCCL's buffers."""
        return CONTEXT_BYTES + (NCCL_BYTES if num_devices > 1 else 0)

    @property
    def headroom_bytes(self) -> int:
        """What must stay free."""
        return int(self.reported_bytes * HEADROOM_SHARE)

    def budget_bytes(self, num_devices: int) -> int:
        """What the allocator may reserve."""
        return self.reported_bytes - DESKTOP_BYTES - self.headroom_bytes - self.outside_bytes(num_devices)


# name: (marketed GiB, compute capability, TFLOPS, GB/s)
_TABLE: dict[str, tuple[int, int, float, float]] = {
    "rtx2060": (6, 75, 25.8, 336),
    "rtx2070": (8, 75, 29.9, 448),
    "rtx2080ti": (11, 75, 53.8, 616),
    "t4": (16, 75, 65.0, 320),
    "v100_16gb": (16, 70, 125.0, 900),
    "v100_32gb": (32, 70, 125.0, 900),
    "rtx3060": (12, 86, 25.6, 360),
    "rtx3070": (8, 86, 40.6, 448),
    "rtx3080": (10, 86, 59.5, 760),
    "rtx3090": (24, 86, 71.0, 936),
    "rtx4060": (8, 89, 30.2, 272),
    "rtx4070": (12, 89, 58.3, 504),
    "rtx4080": (16, 89, 97.5, 717),
    "rtx4090": (24, 89, 165.2, 1008),
    "a10": (24, 86, 125.0, 600),
    "a5000": (24, 86, 111.1, 768),
    "a6000": (48, 86, 154.8, 768),
    "l4": (24, 89, 121.0, 300),
    "l40s": (48, 89, 362.0, 864),
    "rtx6000ada": (48, 89, 364.2, 960),
    "a100_40gb": (40, 80, 312.0, 1555),
    "a100_80gb": (80, 80, 312.0, 2039),
    "h100": (80, 90, 989.0, 3350),
}
CARDS = {
    name: Card(name, gib, int(gib * GIB * REPORTED_SHARE), capability, tflops, bandwidth)
    for name, (gib, capability, tflops, bandwidth) in _TABLE.items()
}


def generic_card(vram_gib: float) -> Card:
    """Any card sold with `vram_gib`, Ampere or later; rates are those of the slowest common card of about that size.

    Raises RecipeError when there is no room for anything.
    """
    reported = int(vram_gib * GIB * REPORTED_SHARE)
    modern = [card for card in CARDS.values() if card.bf16]
    distance = min(abs(card.marketed_gib - vram_gib) for card in modern)
    near = [card for card in modern if abs(card.marketed_gib - vram_gib) == distance]
    like = min(near, key=lambda card: card.tensor_tflops)
    card = Card(
        f"{vram_gib:g} GB card", vram_gib, reported, 86, like.tensor_tflops, like.bandwidth_gb_per_second, like.name
    )
    if vram_gib <= 0 or card.budget_bytes(1) <= 0:
        raise RecipeError(
            f"--vram={vram_gib:g} leaves nothing after the driver's and the desktop's share; --vram 8 works"
        )
    return card


def cards_of_this_machine() -> list[Card]:
    """The GPUs that torch sees; rates are those of the generic card of their size unless the name is known."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gib = round(properties.total_memory / GIB / REPORTED_SHARE)
        name = properties.name.lower().replace(" ", "").replace("nvidia", "").replace("geforce", "")
        like = CARDS.get(name) or generic_card(gib)
        capability = 10 * properties.major + properties.minor
        rates = (like.tensor_tflops, like.bandwidth_gb_per_second)
        found.append(Card(properties.name, gib, properties.total_memory, capability, *rates, like.rates_of))
    return found
