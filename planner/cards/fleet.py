"""The cards of a run: how many on how many nodes, and which of them limits the plan."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

from moco_accel.common.errors import UserError
from planner.cards.card import Card
from planner.cards.lookup import find_card, generic_card, parse_vram


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
    """Return the cards that the options name.

    Args:
        gpu: `--gpu`: one name, or one per GPU of a node, separated by commas.
        vram: `--vram`: one size, or one per GPU of a node.
        gpus: `--gpus`: GPUs per node.

    Returns:
        None if neither `gpu` nor `vram` is given.

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
