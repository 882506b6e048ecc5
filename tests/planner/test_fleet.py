"""The cards of a run, and those of this machine."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from moco_accel.common.errors import UserError
from planner.cards.card import GIB, MIB, Card
from planner.cards.fleet import Fleet, _build_local_card, falls_back_to_system_memory, local_cards, parse_fleet
from planner.cards.lookup import CARDS, generic_card


def refusal_of(*arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        parse_fleet(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parse_fleet() -> None:
    assert parse_fleet(None, None, None) is parse_fleet(None, None, 2) is None
    assert parse_fleet(None, "8", None) == Fleet((generic_card(8),))
    pair = Fleet((generic_card(8),) * 2)
    assert parse_fleet(None, "8", 2) == parse_fleet(None, "8,8", None) == parse_fleet(None, "8,8", 2) == pair
    assert parse_fleet("rtx 3070", None, 3) == parse_fleet("rtx3070", "8", 3) == Fleet((CARDS["rtx3070"],) * 3)
    two = Fleet((CARDS["rtx3070"], CARDS["rtx3060_12gb"]))
    assert parse_fleet("rtx3070,rtx3060_12gb", None, None) == parse_fleet("rtx3070, rtx3060", "8,12", 2) == two
    assert parse_fleet("rtx3060", "12", None) == Fleet((CARDS["rtx3060_12gb"],))
    assert parse_fleet("rtx3060", "8,12", None) == Fleet((CARDS["rtx3060_8gb"], CARDS["rtx3060_12gb"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rtx3070,", None, None), "--gpu= is not known"),
        (("rtx3070", "12", None), "--vram=12 but rtx3070 has 8 GB; --gpu rtx3070 alone works"),
        (("rtx3060", "10", None), "--vram=10 but rtx3060 has 8 or 12 GB; --gpu rtx3060_8gb alone works"),
        ((None, "8,12", 3), "--gpus=3 but --vram=8,12 names 2 cards; --gpus 2 works"),
        (("rtx3070,rtx3090", None, 1), "--gpus=1 but --gpu=rtx3070,rtx3090 names 2 cards; --gpus 2 works"),
        (("rtx3070,rtx3090", "8,24,24", None), "names 2 cards but --vram=8,24,24 3; --gpu alone works"),
        ((None, "8", 0), "--gpus=0 must be at least 1; --gpus 1 works"),
        ((None, "0.5", None), "--vram=0.5 leaves no memory after driver and desktop; --vram 8 works"),
    ],
)
def test_contradicting_options_are_refused(arguments: tuple[str | None, str | None, int | None], message: str) -> None:
    assert message in refusal_of(*arguments)


def fleet_of(*names: str) -> Fleet:
    return Fleet(tuple(CARDS[name] for name in names))


def test_identical_cards() -> None:
    pair = fleet_of("rtx3070", "rtx3070")
    assert not pair.is_mixed
    assert pair.limiting == CARDS["rtx3070"]
    assert pair.note is None


def test_smallest_card_limits_a_mixed_fleet() -> None:
    pair = parse_fleet(None, "8,12", None)
    assert pair is not None
    assert pair.is_mixed
    assert pair.limiting.budget_bytes(2) == generic_card(8).budget_bytes(2)
    assert pair.note == (
        "the 8 GB card limits the plan: every process trains the same micro-batch; 4 GB of the 12 GB card stay unused"
    )


def test_slowest_and_oldest_cards_limit_a_mixed_fleet() -> None:
    three = fleet_of("rtx3060_12gb", "rtx2080super", "rtx3060_12gb")
    limiting = three.limiting
    assert (limiting.name, limiting.reported_bytes) == ("rtx2080super", 7982 * MIB)
    assert (limiting.compute_capability, limiting.precision) == (75, "fp16")
    assert (limiting.tensor_tflops, limiting.bandwidth_gb_per_second) == (25.5, 360)
    assert limiting.rates_of == "rtx3060_12gb"
    assert three.note == (
        "the 8 GB card limits the plan: every process trains the same micro-batch; "
        "4 GB of each 12 GB card stay unused; fp16, because rtx2080super has no bf16; rtx3060_12gb limits the speed"
    )
    assert fleet_of("rtx3060ti", "rtx3070").note == "rtx3060ti limits the speed"


def test_limiting_card_has_the_smallest_budget_then_the_lowest_speed() -> None:
    small, large = CARDS["rtx3070"], CARDS["rtx3060_12gb"]
    assert Fleet((large, small)).limiting.name == small.name
    busy = dataclasses.replace(large, used_bytes=6 * GIB)
    assert Fleet((small, busy)).limiting.name == busy.name
    slow = dataclasses.replace(small, name="slow", tensor_tflops=1)
    assert Fleet((small, slow, large)).limiting.name == slow.name


@pytest.mark.parametrize(
    ("system", "release", "expected"),
    [
        ("Linux", "6.8.0-45-generic", False),
        ("Linux", "5.15.153.1-microsoft-standard-WSL2", True),
        ("Linux", "4.4.0-19041-Microsoft", True),
        ("Windows", "10", True),
    ],
)
def test_system_memory_fallback(monkeypatch: pytest.MonkeyPatch, system: str, release: str, expected: bool) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert falls_back_to_system_memory() is expected


def local_card(name: str, total_mib: float, free_mib: float, major: int = 8, minor: int = 6) -> Card:
    properties = SimpleNamespace(name=name, total_memory=int(total_mib * MIB), major=major, minor=minor)
    return _build_local_card(properties, int(free_mib * MIB))


def test_local_card_has_the_figures_of_cuda() -> None:
    card = local_card("NVIDIA GeForce RTX 3070", 7840, free_mib=7840 - 426 - 700)
    assert (card.name, card.marketed_gib, card.reported_bytes) == ("NVIDIA GeForce RTX 3070", 8, 7840 * MIB)
    assert (card.tensor_tflops, card.rates_of) == (40.6, None)
    assert card.used_bytes == card.desktop_bytes == 704 * MIB  # 700, in steps of 64
    assert card.budget_bytes(1) / MIB == pytest.approx(7840 - 704 - 426 - 392, abs=1e-3)
    idle = local_card("NVIDIA GeForce RTX 3070", 7840, free_mib=7840 - 290)  # its context is smaller than the allowance
    assert idle.used_bytes == idle.desktop_bytes == 0


def test_local_variants_are_distinguished_by_memory() -> None:
    assert local_card("NVIDIA GeForce RTX 3060", 12044, 11000).bandwidth_gb_per_second == 360
    assert local_card("NVIDIA GeForce RTX 3060", 7830, 7000).bandwidth_gb_per_second == 240
    assert local_card("NVIDIA GeForce RTX 4060 Ti", 8188, 7000).marketed_gib == 8
    assert local_card("NVIDIA A100 80GB PCIe", 81154, 80000).tensor_tflops == 312
    assert local_card("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97250, 96000).marketed_gib == 96


def test_unknown_local_card_has_rates_of_its_size() -> None:
    card = local_card("NVIDIA Something New", 7.6 * 1024, 7 * 1024, major=13, minor=1)
    assert (card.name, card.marketed_gib, card.rates_of) == ("NVIDIA Something New", 8, "rtx4060")
    assert card.compute_capability == 131
    assert local_card("NVIDIA A100 80GB PCIe MIG 1g.10gb", 9728, 9000).rates_of == "rtx3080_10gb"
    assert local_card("NVIDIA GeForce MX150", 1999, 1500).marketed_gib == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_no_local_cards_without_gpus() -> None:
    assert local_cards() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_local_cards() -> None:
    for index, card in enumerate(local_cards()):
        properties = torch.cuda.get_device_properties(index)
        assert card.reported_bytes == properties.total_memory
        assert card.reported_bytes <= card.marketed_gib * GIB * 1.01
        assert card.used_bytes is not None
        assert 0 < card.budget_bytes(1) < card.reported_bytes


def test_parse_fleet_imports_no_torch() -> None:
    code = "import sys; from planner.cards.fleet import parse_fleet; parse_fleet('rtx3070', '8', 2)"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
