"""GPUs: which cards are meant, and what a training process can have of one. `catalogue` has the figures."""

from __future__ import annotations

import dataclasses
import math
import platform
from dataclasses import dataclass
from typing import Any

from moco_accel.common.errors import UserError
from planner.cards import catalogue as table

GIB, MIB = 1 << 30, 1 << 20
CONTEXT_BYTES = 426 * MIB  # seen on an RTX 6000 Ada with 2.10; 287 MB with lazy loading
NCCL_BYTES = 256 * MIB  # its buffers, outside the allocator; an allowance, not measured
DESKTOP_BYTES = GIB // 2  # a desktop on the card takes 0.3 to 0.8 GiB
HEADROOM_SHARE = 0.05
_TAKEN_STEP_BYTES = 64 * MIB
UTILISATION = 0.35
"""Share of a card's peak rate that training reaches; usual for ViTs in 16 bits, and a guess for any one card."""


@dataclass(frozen=True)
class Card:
    """One GPU. `reported_bytes` is what CUDA calls total memory; `compute_capability` 86 means 8.6.

    `assumed`: no report of that figure was found. `taken_bytes`: what others use of a card of this machine.
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
    taken_bytes: int | None = None

    @property
    def bf16(self) -> bool:
        return self.compute_capability >= 80

    @property
    def precision(self) -> str:
        """The 16-bit format the card computes in: bf16 from Ampere on, fp16 before."""
        return "bf16" if self.bf16 else "fp16"

    @property
    def needs(self) -> str | None:
        """What the card asks of the installation, if anything."""
        old = self.compute_capability < table.OLDEST_CAPABILITY
        return "torch built for CUDA 12.6; its CUDA 13 builds start at compute capability 7.5" if old else None

    @property
    def desktop_bytes(self) -> int:
        """What others take of the card: as seen on this machine, else an allowance where there can be a display."""
        if self.taken_bytes is not None:
            return self.taken_bytes
        return 0 if self.data_centre else DESKTOP_BYTES

    def outside_bytes(self, num_devices: int) -> int:
        """What a process takes outside the allocator: the CUDA context and, with several GPUs, NCCL's buffers."""
        return CONTEXT_BYTES + (NCCL_BYTES if num_devices > 1 else 0)

    @property
    def headroom_bytes(self) -> int:
        """What must stay free."""
        return int(self.reported_bytes * HEADROOM_SHARE)

    def budget_bytes(self, num_devices: int) -> int:
        """What the allocator may reserve."""
        return self.reported_bytes - self.desktop_bytes - self.headroom_bytes - self.outside_bytes(num_devices)

    def free_and_needed_bytes(self, peak_bytes: int, off_share: float, num_devices: int) -> tuple[int, int]:
        """What stays free beside a peak that may be off by `off_share`, and what must, for it to fit."""
        free = self.budget_bytes(num_devices) + self.headroom_bytes - peak_bytes
        return free, max(self.headroom_bytes, int(off_share * peak_bytes))


def _card(sold: table.Sold) -> Card:
    share = table.ASSUMED_SHARE_ECC if sold.ecc else table.ASSUMED_SHARE
    reported = int(share * sold.marketed_gib * GIB) if sold.reported_mib is None else sold.reported_mib * MIB
    return Card(
        sold.name, sold.marketed_gib, reported, sold.compute_capability, sold.tensor_tflops,
        sold.bandwidth_gb_per_second, product=sold.product, assumed=sold.reported_mib is None,
        data_centre=sold in table.DATA_CENTRE,
    )  # fmt: skip


CARDS = {name: _card(sold) for name, sold in table.SOLD.items()}
"""By size, and the commonest of a size first."""


def card_named(name: str, vram_gib: float | None = None) -> Card:
    """The card that people call `name`; of several, the one sold with `vram_gib`. Raises UserError."""
    called = [CARDS[key] for key in table.names_called(name)]
    sized = [card for card in called if vram_gib in (None, card.marketed_gib)]
    text = " ".join(name.split())
    if not sized:
        sizes = " or ".join(dict.fromkeys(f"{card.marketed_gib:g}" for card in called))
        raise UserError(f"--vram={vram_gib:g} but {text} has {sizes} GB; --gpu {called[0].name} alone works")
    if len(sized) > 1:
        names = " or ".join(card.name for card in sized)
        raise UserError(f"--gpu={text} could be {names}; --gpu {sized[0].name} works")
    return sized[0]


def generic_card(vram_gib: float) -> Card:
    """Any card sold with `vram_gib`, Ampere or later. Raises UserError when there is no room for anything.

    It reports the smallest share that cards of about that size were seen to report; rates are the commonest card's.
    """
    reported, like = int(vram_gib * GIB * table.smallest_share(vram_gib)), _commonest(vram_gib)
    rates = (like.tensor_tflops, like.bandwidth_gb_per_second)
    card = Card(f"{vram_gib:g} GB card", vram_gib, reported, 86, *rates, rates_of=like.name, assumed=True)
    if vram_gib <= 0 or card.budget_bytes(1) <= 0:
        raise UserError(
            f"--vram={vram_gib:g} leaves nothing after the driver's and the desktop's share; --vram 8 works"
        )
    return card


def _commonest(vram_gib: float) -> Card:
    return min((card for card in CARDS.values() if card.bf16), key=lambda card: abs(card.marketed_gib - vram_gib))


def smallest_card_with(peak_bytes: int, off_share: float, num_devices: int) -> Card | None:
    """The commonest card of the smallest size on which that peak fits, off by `off_share`; no laptop, and with bf16."""
    for card in CARDS.values():
        free, needed = card.free_and_needed_bytes(peak_bytes, off_share, num_devices)
        if card.bf16 and "laptop" not in card.name and free >= needed:
            return card
    return None


def cards_of_this_machine() -> list[Card]:
    """The GPUs that torch sees, as they are now. Rates are of the table's card of that name, else of a like size."""
    import torch

    return [
        _card_here(torch.cuda.get_device_properties(index), _free_bytes(index))
        for index in range(torch.cuda.device_count())
    ]


def _free_bytes(index: int) -> int:
    """What is free beside this process' own context; nothing when there is no room for even that."""
    import torch

    try:
        return int(torch.cuda.mem_get_info(index)[0])
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        return 0


def _card_here(properties: Any, free_bytes: int) -> Card:
    name, total = properties.name, properties.total_memory
    called = [CARDS[key] for product, key in table.PRODUCTS if table.plain(product) == table.plain(name)]
    like = min(called, key=lambda card: abs(card.reported_bytes - total), default=_commonest(total / GIB))
    return dataclasses.replace(
        like, name=name, product=name, reported_bytes=total, assumed=False,
        marketed_gib=like.marketed_gib if called else math.ceil(total / GIB),
        compute_capability=10 * properties.major + properties.minor,
        rates_of=None if called else like.name,
        # in whole steps, so that an answer is remembered while little changes
        taken_bytes=-(-max(total - CONTEXT_BYTES - free_bytes, 0) // _TAKEN_STEP_BYTES) * _TAKEN_STEP_BYTES,
    )  # fmt: skip


def spills_to_system_memory() -> bool:
    """Whether the driver goes on in system memory, slowly, where it would fail on Linux: on Windows and in WSL."""
    return platform.system() == "Windows" or "microsoft" in platform.release().lower()


def list_cards_table() -> list[tuple[str, str, float, float, bool, float, str, float, float]]:
    """Name, product, GiB sold, GiB reported, whether that is assumed, compute capability, precision, TFLOPS, GB/s."""
    return [
        (card.name, card.product or "", card.marketed_gib, card.reported_bytes / GIB, card.assumed,
         card.compute_capability / 10, card.precision, card.tensor_tflops, card.bandwidth_gb_per_second)
        for card in CARDS.values()
    ]  # fmt: skip
