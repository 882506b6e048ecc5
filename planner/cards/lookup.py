"""Find a card by the name that people use, by its memory, or by the memory that a run needs; list all cards."""

from __future__ import annotations

import difflib
import json
import re

from rich import box
from rich.table import Table

from moco_accel.common.console import console
from moco_accel.common.errors import UserError
from planner.cards import catalogue
from planner.cards.card import GIB, MIB, Card


def _build_card(spec: catalogue.Spec) -> Card:
    share = catalogue.ASSUMED_SHARE_ECC if spec.ecc else catalogue.ASSUMED_SHARE
    reported = int(share * spec.marketed_gib * GIB) if spec.reported_mib is None else spec.reported_mib * MIB
    return Card(
        spec.name, spec.marketed_gib, reported, spec.compute_capability, spec.tensor_tflops,
        spec.bandwidth_gb_per_second, product=spec.product, assumed=spec.reported_mib is None,
        data_centre=spec in catalogue.DATA_CENTRE,
    )  # fmt: skip


CARDS = {name: _build_card(spec) for name, spec in catalogue.SPECS.items()}
"""By size; the most common card of a size comes first."""
PRODUCTS = [*((spec.product, spec.name) for spec in catalogue.SPECS.values()), *catalogue.PRODUCT_ALIASES.items()]


def normalize_name(text: str) -> str:
    """Return a card's name without case, punctuation and the words that all product names share."""
    letters = re.sub(r"[^a-z0-9]", "", text.lower())
    return re.sub("nvidia|geforce|tesla|generation|gpu", "", letters).replace("mobile", "laptop")


def _build_spellings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text, name in [*((name, name) for name in CARDS), *PRODUCTS]:
        size = f"{CARDS[name].marketed_gib}gb"
        spellings = {normalize_name(text), normalize_name(text).replace(size, ""), name.partition("_")[0]}
        spellings |= {w.removesuffix("ada") for w in spellings} | {w.removeprefix("quadro") for w in spellings}
        spellings |= {word.removeprefix("rtx") for word in spellings}
        for word in spellings | {word + size for word in spellings}:
            found[word] = [*(other for other in found.get(word, []) if other != name), name]
    return found


_SPELLINGS = _build_spellings()
_MAX_VRAM_GIB = 1024
_OTHER_MAKERS = re.compile(
    r"(?P<amd>rx|radeon|mi\d|w\d{4}|instinct)|(?P<intel>arc|a[357]\d0|b580|max)|m[1-5](pro|max|ultra)?$"
)


def find_card(name: str, vram_gib: float | None = None) -> Card:
    """Return the card that people call `name`, with or without size, RTX and the vendor's words.

    The marketed memory `vram_gib` selects among cards of the same name.

    Raises:
        UserError: If no card, or more than one, matches.
    """
    text = " ".join(name.split())
    matches = _match_name(text)
    sized = [card for card in matches if vram_gib in (None, card.marketed_gib)]
    if not sized:
        sizes = " or ".join(dict.fromkeys(f"{card.marketed_gib:g}" for card in matches))
        raise UserError(f"--vram={vram_gib:g} but {text} has {sizes} GB; --gpu {matches[0].name} alone works")
    if len(sized) > 1:
        names = " or ".join(card.name for card in sized)
        raise UserError(f"--gpu={text} could be {names}; --gpu {sized[0].name} works")
    return sized[0]


def _match_name(text: str) -> list[Card]:
    normalized = normalize_name(text)
    names = _SPELLINGS.get(normalized, [])
    if not names and re.fullmatch("gtx.*|[pkm][0-9]+", normalized):
        raise UserError(f"--gpu={text} has no tensor cores and is not supported; --list-gpus shows supported cards")
    if not names and (other := _OTHER_MAKERS.match(text)):
        maker = "AMD" if other["amd"] else "Intel" if other["intel"] else "Apple"
        raise UserError(
            f"--gpu={text} is a card of {maker}, and the planner counts by CUDA's rules for NVIDIA's cards; nothing "
            "here was tried on others; --vram 8 works, as for an NVIDIA card of that size"
        )
    if not names:
        raise UserError(
            f"--gpu={text} is not known; nearest: {', '.join(_closest_names(normalized))}; --list-gpus shows all, "
            "--vram 8 works for any card"
        )
    return [CARDS[name] for name in names]


def _closest_names(text: str) -> list[str]:
    """Return the three most similar names; among equally similar ones, those with the closest number."""

    def number(name: str) -> int:
        return int(re.sub("[^0-9]", "", name)[:6] or 0)

    def distance(name: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, text, name, autojunk=False).ratio()
        return -ratio, abs(number(name) - number(text))

    return sorted(dict.fromkeys(name.partition("_")[0] for name in CARDS), key=distance)[:3]


def parse_vram(text: str) -> list[float]:
    """Parse `8`, `8 GB` or `8,12` into the marketed GB of each card.

    Raises:
        UserError: If a part is not a size.
    """
    sizes = []
    for part in text.split(","):
        size = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*(gi?b?)?\s*", part, re.IGNORECASE)
        gib = float(size[1]) if size else 0.0
        if not 0 < gib <= _MAX_VRAM_GIB:
            works = f"{gib / 1024:g}" if gib % 1024 == 0 and 0 < gib / 1024 <= _MAX_VRAM_GIB else "8"
            most = f", at most {_MAX_VRAM_GIB}" if gib > _MAX_VRAM_GIB else ""
            given = " ".join(text.split())
            raise UserError(f"--vram={given} must be a card's marketed memory in GB{most}; --vram {works} works")
        sizes.append(gib)
    return sizes


def generic_card(vram_gib: float) -> Card:
    """Return a card of `vram_gib`, Ampere or later, whatever its name.

    It reports the smallest share of its memory that cards of about that size report, and has the throughput and
    bandwidth of the most common one.

    Raises:
        UserError: If driver and desktop leave no memory.
    """
    reported, typical = int(vram_gib * GIB * _smallest_reported_share(vram_gib)), most_common_card(vram_gib)
    rates = (typical.tensor_tflops, typical.bandwidth_gb_per_second)
    card = Card(f"{vram_gib:g} GB card", vram_gib, reported, 86, *rates, rates_of=typical.name, assumed=True)
    if vram_gib <= 0 or card.budget_bytes(1) <= 0:
        raise UserError(f"--vram={vram_gib:g} leaves no memory after driver and desktop; --vram 8 works")
    return card


def _smallest_reported_share(vram_gib: float) -> float:
    """Return the smallest reported share of memory among cards of the closest size, without ECC.

    7.62 of 8 GiB (RTX 4060), 11.48 of 12 (RTX 5070), 15.44 of 16 (RTX 5070 Ti), 23.52 of 24 (RTX 4090).
    """
    shares = [
        (abs(spec.marketed_gib - vram_gib), spec.reported_mib / (spec.marketed_gib * 1024))
        for spec in catalogue.SPECS.values()
        if spec.reported_mib is not None and not spec.ecc
    ]
    return min(shares)[1]


def most_common_card(vram_gib: float) -> Card:
    """Return the most common bf16 card of the size closest to `vram_gib`."""
    return min((card for card in CARDS.values() if card.has_bf16), key=lambda card: abs(card.marketed_gib - vram_gib))


def smallest_fitting_card(peak_bytes: int, off_share: float, num_devices: int) -> Card | None:
    """Return the smallest bf16 card on which a peak with the relative error `off_share` fits; no laptop GPU."""
    for card in CARDS.values():
        free, needed = card.free_and_needed_bytes(peak_bytes, off_share, num_devices)
        if card.has_bf16 and "laptop" not in card.name and free >= needed:
            return card
    return None


def show_cards(as_json: bool) -> None:
    """Print the known cards as a table, or as JSON on stdout."""
    if as_json:
        print(json.dumps([_card_fields(card) for card in CARDS.values()], indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("--gpu", "sold\nGB", "has\nGiB", "com-\npute", "", "16-bit\nTFLOPS", "GB/s"):
        table.add_column(heading, justify="left" if heading in ("--gpu", "") else "right", no_wrap=True)
    table.add_column("product", overflow="ellipsis", no_wrap=True, max_width=22)
    for card in CARDS.values():
        reported = f"{'~' if card.assumed else ''}{card.reported_bytes / GIB:.1f}"
        product = (card.product or "").removeprefix("NVIDIA ").removeprefix("GeForce ")
        table.add_row(
            card.name, f"{card.marketed_gib:g}", reported, f"{card.compute_capability / 10:.1f}", card.precision,
            f"{card.tensor_tflops:.0f}", f"{card.bandwidth_gb_per_second:g}", product,
        )  # fmt: skip
    console.print(table)
    console.print("~ assumed: no published figure was found. For any other NVIDIA card, use --vram with its GB.")


def _card_fields(card: Card) -> dict[str, object]:
    return {
        "name": card.name,
        "product": card.product,
        "gib_sold": card.marketed_gib,
        "gib_reported": card.reported_bytes / GIB,
        "reported_is_assumed": card.assumed,
        "compute_capability": card.compute_capability / 10,
        "precision": card.precision,
        "tensor_tflops": card.tensor_tflops,
        "gb_per_second": card.bandwidth_gb_per_second,
    }
