"""The cards of a run: which are named, how many on how many nodes, and which of them decides."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

from moco_accel.common.errors import UserError
from planner.cards.catalogue import parse_vram
from planner.cards.devices import Card, card_named, generic_card


def smallest_of(cards: list[Card], num_nodes: int = 1) -> Card:
    """The card whose budget decides; among equals the slowest."""
    return min(cards, key=lambda card: (card.budget_bytes(len(cards) * num_nodes), card.tensor_tflops))


@dataclass(frozen=True)
class Fleet:
    """The cards of each of a run's nodes. Every process trains the same micro-batch, so one card decides for all."""

    cards: tuple[Card, ...]
    num_nodes: int = 1

    @property
    def num_devices(self) -> int:
        """Over all nodes."""
        return len(self.cards) * self.num_nodes

    @property
    def unlike(self) -> bool:
        return len({(card.name, card.marketed_gib) for card in self.cards}) > 1

    @property
    def deciding(self) -> Card:
        """The card to plan for: the smallest, in a precision that all have, at the rates of the slowest."""
        smallest = smallest_of(list(self.cards), self.num_nodes)
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
        """What follows from cards that are unlike."""
        size, said = self.deciding.marketed_gib, []
        larger = Counter(card.marketed_gib for card in self.cards if card.marketed_gib > size)
        if larger:
            said.append(f"the {size:g} GB card decides: every process trains the same micro-batch")
            unused = (
                f"{more - size:g} GB of {'each' if n > 1 else 'the'} {more:g} GB card" for more, n in larger.items()
            )
            said.append(f"{' and '.join(unused)} stay unused")
        without = sorted({card.name for card in self.cards if not card.bf16})
        if without and any(card.bf16 for card in self.cards):
            said.append(f"fp16, because {' and '.join(without)} has no bf16")
        slowest = min(self.cards, key=lambda card: card.tensor_tflops)
        if slowest.rates_of is None and any(card.tensor_tflops > slowest.tensor_tflops for card in self.cards):
            said.append(f"{slowest.name} sets the pace")
        return "; ".join(said) or None


def fleet(gpu: str | None, vram: str | None, gpus: int | None, nodes: int = 1) -> Fleet | None:
    """The cards that are named, in lists or one for all `gpus` of a node; None without `gpu` and `vram`.

    Raises UserError.
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
        raise UserError(f"--nodes={nodes} are alike, and a list names unlike cards; the smallest decides: {one} works")
    if names and sizes and min(len(names), len(sizes)) not in (1, listed):
        raise UserError(f"--gpu={gpu} names {len(names)} cards and --vram={vram} {len(sizes)}; --gpu alone works")
    if listed > 1 and gpus not in (None, listed):
        given = f"--vram={vram}" if len(sizes) == listed else f"--gpu={gpu}"
        raise UserError(f"--gpus={gpus} but {given} names {listed} cards; --gpus {listed} works")
    if names:
        wanted = sizes * (listed // len(sizes)) if sizes else [None] * listed
        cards = [card_named(*pair) for pair in zip(names * (listed // len(names)), wanted, strict=True)]
    else:
        cards = [generic_card(size) for size in sizes]
    return Fleet(tuple(cards if listed > 1 else cards * (gpus or 1)), nodes)
