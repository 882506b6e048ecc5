"""The cards of a run, named or of this machine, and which of them limits the plan. Imports torch only when called."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections import Counter
from dataclasses import dataclass
from typing import Any

from moco_accel.common.errors import UserError
from planner.cards.card import CONTEXT_BYTES, GIB, MIB, Card, round_up
from planner.cards.lookup import CARDS, PRODUCTS, find_card, generic_card, most_common_card, normalize_name, parse_vram

_USED_STEP_BYTES = 64 * MIB  # used memory is rounded up to it, so that cached results stay valid for small changes


@dataclass(frozen=True)
class Fleet:
    """The cards of each node of a run. Every process trains the same micro-batch, so one card limits the plan."""

    cards: tuple[Card, ...]
    num_nodes: int = 1

    @property
    def num_devices(self) -> int:
        """GPUs of all nodes."""
        return len(self.cards) * self.num_nodes

    @property
    def is_mixed(self) -> bool:
        return len({(card.name, card.marketed_gib) for card in self.cards}) > 1

    @property
    def limiting(self) -> Card:
        """The card to plan for: the smallest memory, a precision that all cards have, the rates of the slowest."""
        smallest = min(self.cards, key=lambda card: (card.budget_bytes(self.num_devices), card.tensor_tflops))
        slowest = min(self.cards, key=lambda card: card.tensor_tflops)
        return dataclasses.replace(
            smallest,
            compute_capability=min(card.compute_capability for card in self.cards),
            tensor_tflops=slowest.tensor_tflops,
            bandwidth_gb_per_second=min(card.bandwidth_gb_per_second for card in self.cards),
            rates_of=smallest.rates_of if slowest.name == smallest.name else slowest.rates_of or slowest.name,
        )

    @property
    def note(self) -> str | None:
        """A sentence on what different cards imply for the plan; None if they imply nothing."""
        size, notes = self.limiting.marketed_gib, []
        larger = Counter(card.marketed_gib for card in self.cards if card.marketed_gib > size)
        if larger:
            notes.append(f"the {size:g} GB card limits the plan: every process trains the same micro-batch")
            unused = (
                f"{more - size:g} GB of {'each' if n > 1 else 'the'} {more:g} GB card" for more, n in larger.items()
            )
            notes.append(f"{' and '.join(unused)} stay unused")
        without = sorted({card.name for card in self.cards if not card.has_bf16})
        if without and any(card.has_bf16 for card in self.cards):
            notes.append(f"fp16, because {' and '.join(without)} has no bf16")
        slowest = min(self.cards, key=lambda card: card.tensor_tflops)
        if slowest.rates_of is None and any(card.tensor_tflops > slowest.tensor_tflops for card in self.cards):
            notes.append(f"{slowest.name} limits the speed")
        return "; ".join(notes) or None


def parse_fleet(gpu: str | None, vram: str | None, gpus: int | None, nodes: int = 1) -> Fleet | None:
    """Return the cards that the options name; None if neither `gpu` nor `vram` is given.

    `gpu` is one name and `vram` one size, or one per GPU of a node, separated by commas.

    Raises:
        UserError: If the options contradict each other or name no card.
    """
    if gpus is not None and gpus < 1:
        raise UserError(f"--gpus={gpus} must be at least 1; --gpus 1 works")
    names = gpu.split(",") if gpu is not None else []
    sizes = parse_vram(vram) if vram is not None else []
    listed = max(len(names), len(sizes))
    if not listed:
        return None
    if listed > 1 and nodes > 1:
        one = f"--vram {min(sizes):g}" if sizes else f"--gpu {names[0]}"
        raise UserError(
            f"--nodes={nodes} requires identical cards, but a list names several; the smallest limits the plan: "
            f"{one} works"
        )
    if names and sizes and min(len(names), len(sizes)) not in (1, listed):
        raise UserError(f"--gpu={gpu} names {len(names)} cards but --vram={vram} {len(sizes)}; --gpu alone works")
    if listed > 1 and gpus not in (None, listed):
        given = f"--vram={vram}" if len(sizes) == listed else f"--gpu={gpu}"
        raise UserError(f"--gpus={gpus} but {given} names {listed} cards; --gpus {listed} works")
    if names:
        wanted = sizes * (listed // len(sizes)) if sizes else [None] * listed
        cards = [find_card(*pair) for pair in zip(names * (listed // len(names)), wanted, strict=True)]
    else:
        cards = [generic_card(size) for size in sizes]
    return Fleet(tuple(cards if listed > 1 else cards * (gpus or 1)), nodes)


def local_cards() -> list[Card]:
    """Return the GPUs that torch finds, with the memory that is in use now.

    Throughput and bandwidth come from the catalogue's card of the same name, else from one of a similar size.
    """
    import torch

    return [
        _build_local_card(torch.cuda.get_device_properties(index), _free_bytes(index))
        for index in range(torch.cuda.device_count())
    ]


def _free_bytes(index: int) -> int:
    """Return the bytes that are free beside this process's context; 0 if the context itself does not fit."""
    import torch

    try:
        return int(torch.cuda.mem_get_info(index)[0])
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        return 0


def _build_local_card(properties: Any, free_bytes: int) -> Card:
    name, total = properties.name, properties.total_memory
    matches = [CARDS[key] for product, key in PRODUCTS if normalize_name(product) == normalize_name(name)]
    similar = min(matches, key=lambda card: abs(card.reported_bytes - total), default=most_common_card(total / GIB))
    return dataclasses.replace(
        similar, name=name, product=name, reported_bytes=total, assumed=False,
        marketed_gib=similar.marketed_gib if matches else math.ceil(total / GIB),
        compute_capability=10 * properties.major + properties.minor,
        rates_of=None if matches else similar.name,
        used_bytes=round_up(max(total - CONTEXT_BYTES - free_bytes, 0), _USED_STEP_BYTES),
    )  # fmt: skip


def falls_back_to_system_memory() -> bool:
    """Return whether the driver uses system memory when a card is full (Windows and WSL) instead of failing."""
    return platform.system() == "Windows" or "microsoft" in platform.release().lower()
