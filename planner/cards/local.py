"""The GPUs of this machine. torch is imported only when it is called."""

from __future__ import annotations

import dataclasses
import math
import platform
from typing import Any

from planner.cards.card import CONTEXT_BYTES, GIB, MIB, Card
from planner.cards.lookup import CARDS, PRODUCTS, most_common_card, normalize_name

_USED_STEP_BYTES = 64 * MIB  # used memory is rounded up to it, so that cached results stay valid for small changes


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
        used_bytes=-(-max(total - CONTEXT_BYTES - free_bytes, 0) // _USED_STEP_BYTES) * _USED_STEP_BYTES,
    )  # fmt: skip


def falls_back_to_system_memory() -> bool:
    """Return whether the driver uses system memory when a card is full (Windows and WSL) instead of failing."""
    return platform.system() == "Windows" or "microsoft" in platform.release().lower()
