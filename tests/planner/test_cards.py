"""Cards: memory budgets, rates, and names."""

from __future__ import annotations

import dataclasses
import re

import pytest

from moco_accel.common.errors import UserError
from planner.cards import catalogue
from planner.cards.card import CONTEXT_BYTES, DESKTOP_BYTES, GIB, MIB, NCCL_BYTES
from planner.cards.lookup import CARDS, find_card, generic_card, parse_vram, smallest_fitting_card


def test_budget_is_reported_memory_minus_other_uses() -> None:
    card = CARDS["rtx3070"]
    assert card.reported_bytes == 7834 * MIB
    assert card.desktop_bytes == DESKTOP_BYTES == 512 * MIB
    assert card.outside_bytes(1) == CONTEXT_BYTES == 426 * MIB
    assert card.outside_bytes(2) == CONTEXT_BYTES + NCCL_BYTES == 682 * MIB
    assert card.headroom_bytes / MIB == pytest.approx(391.7)
    assert card.budget_bytes(2) / MIB == pytest.approx(7834 - 512 - 682 - 391.7, abs=1e-3)
    free = dataclasses.replace(card, used_bytes=0)
    assert free.budget_bytes(2) == card.budget_bytes(2) + DESKTOP_BYTES
    assert CARDS["t4"].desktop_bytes == CARDS["h100_sxm"].desktop_bytes == 0
    assert CARDS["a6000"].desktop_bytes == DESKTOP_BYTES


@pytest.mark.parametrize(
    ("name", "capability", "precision", "tflops", "bandwidth"),
    [
        ("rtx2080ti", 75, "fp16", 53.8, 616),
        ("rtx3070", 86, "bf16", 40.6, 448),
        ("rtx3090", 86, "bf16", 71.0, 936),
        ("rtx4060", 89, "bf16", 30.2, 272),
        ("rtx4090", 89, "bf16", 165.2, 1008),
        ("rtx5090", 120, "bf16", 209.5, 1792),
        ("a100_80gb", 80, "bf16", 312, 1935),
        ("h100_sxm", 90, "bf16", 989, 3350),
    ],
)
def test_rates_match_the_data_sheets(
    name: str, capability: int, precision: str, tflops: float, bandwidth: float
) -> None:
    card = CARDS[name]
    assert (card.compute_capability, card.precision) == (capability, precision)
    assert (card.tensor_tflops, card.bandwidth_gb_per_second) == (tflops, bandwidth)


# cores × GHz × 4 for GeForce from Ampere on, × 8 for Turing and workstation cards; worst measured: 0.35 % (rounding)
@pytest.mark.parametrize(
    ("name", "cores", "gigahertz", "per_clock"),
    [
        ("rtx2060_12gb", 2176, 1.650, 8),
        ("rtx2080super", 3072, 1.815, 8),
        ("rtx3050_6gb", 2304, 1.470, 4),
        ("rtx3060ti", 4864, 1.665, 4),
        ("rtx3090ti", 10752, 1.860, 4),
        ("rtx4070super", 7168, 2.475, 4),
        ("rtx4080super", 10240, 2.550, 4),
        ("rtx4090laptop", 9728, 1.455, 4),
        ("rtx5060", 3840, 2.497, 4),
        ("rtx5090", 21760, 2.407, 4),
        ("a4500", 7168, 1.650, 8),
        ("rtx6000ada", 18176, 2.505, 8),
        ("rtxpro6000", 24064, 2.617, 8),
    ],
)
def test_rates_follow_from_cores_and_clock(name: str, cores: int, gigahertz: float, per_clock: int) -> None:
    assert CARDS[name].tensor_tflops == pytest.approx(cores * gigahertz * per_clock / 1000, rel=4e-3)


def test_catalogue_is_consistent() -> None:
    assert len(CARDS) == len(catalogue.GEFORCE) + len(catalogue.WORKSTATION) + len(catalogue.DATA_CENTRE)
    for spec in catalogue.SPECS.values():
        assert re.fullmatch("[a-z0-9]+(_[a-z0-9]+)?", spec.name)
        assert (spec.reported_mib is None) == (spec.source == "")
        if spec.reported_mib is not None:
            share = spec.reported_mib / (1024 * spec.marketed_gib)
            assert (catalogue.ASSUMED_SHARE_ECC if spec.ecc else catalogue.ASSUMED_SHARE) < share < 1
        assert 0.05 < spec.tensor_tflops / spec.bandwidth_gb_per_second < 0.5  # a typing error would be further off
    assert list(CARDS.values()) == sorted(CARDS.values(), key=lambda card: card.marketed_gib)
    assert set(catalogue.PRODUCT_ALIASES.values()) <= set(CARDS)
    names = [card.name for card in CARDS.values() if card.requirement is not None]
    assert names == ["v100_16gb", "v100_32gb"]


def test_unreported_memory_is_marked_and_low() -> None:
    assert CARDS["rtx5060"].assumed
    assert CARDS["rtx5060"].reported_bytes / GIB == pytest.approx(7.52)
    assert not CARDS["rtx3070"].assumed


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rtx3070", "rtx3070"),
        ("RTX 3070", "rtx3070"),
        (" rtx-3070 ", "rtx3070"),
        ("3070", "rtx3070"),
        ("NVIDIA GeForce RTX 3070", "rtx3070"),
        ("RTX 3070 8GB", "rtx3070"),
        ("GeForce RTX 3070 Ti", "rtx3070ti"),
        ("NVIDIA GeForce RTX 3070 Laptop GPU", "rtx3070laptop"),
        ("4090 mobile", "rtx4090laptop"),
        ("RTX 4060 Ti 16 GB", "rtx4060ti_16gb"),
        ("RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
        ("Quadro RTX 6000", "quadrortx6000"),
        ("A100 80GB PCIe", "a100_80gb"),
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
        ("Tesla T4", "t4"),
    ],
)
def test_find_card_accepts_many_spellings(name: str, expected: str) -> None:
    assert find_card(name) is CARDS[expected]


def test_every_card_is_found_by_name_and_product() -> None:
    for name, card in CARDS.items():
        assert find_card(name) is card
        assert find_card(card.product or "", card.marketed_gib) is card


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        (
            "rtx3071",
            "--gpu=rtx3071 is not known; nearest: rtx3070, rtx3070ti, rtx3080; --list-gpus shows all, "
            "--vram 8 works for any card",
        ),
        ("RTX 3060", "--gpu=RTX 3060 could be rtx3060_8gb or rtx3060_12gb; --gpu rtx3060_8gb works"),
        ("h100", "--gpu=h100 could be h100_sxm or h100_pcie or h100_nvl; --gpu h100_sxm works"),
        ("GTX 1080 Ti", "has no tensor cores and is not supported; --list-gpus shows supported cards"),
        ("p100", "--gpu=p100 has no tensor cores"),
        ("", "--gpu= is not known"),
        ("rtx 3070\nrtx 3090", "--gpu=rtx 3070 rtx 3090 is not known"),
    ],
)
def test_unknown_and_ambiguous_names_are_refused(gpu: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        find_card(gpu)
    assert "\n" not in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("8", [8]), ("8,12", [8, 12]), ("8GB", [8]), ("8 GiB", [8]), ("8g, 12 gb", [8, 12]), ("7.5", [7.5])],
)
def test_parse_vram(text: str, sizes: list[float]) -> None:
    assert parse_vram(text) == sizes


@pytest.mark.parametrize("text", ["0", "-1", "abc", "", "8,,12", "8,", "inf", "nan", "1e3", "8 TB", "8;12", "8,0", "٨"])
def test_invalid_vram_is_refused(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_vram(text)
    assert str(caught.value) == f"--vram={text} must be a card's marketed memory in GB; --vram 8 works"


@pytest.mark.parametrize(
    ("text", "works"), [("8192", 8), ("12288", 12), ("24576 GB", 24), ("10000", 8), ("9" * 400, 8)]
)
def test_megabytes_are_refused_with_the_gigabytes_that_they_are(text: str, works: int) -> None:
    with pytest.raises(UserError, match=f"in GB, at most 1024; --vram {works} works$"):
        parse_vram(text)


def test_generic_card_reports_no_more_than_real_cards_of_its_size() -> None:
    assert generic_card(8).reported_bytes / GIB == pytest.approx(7.623, abs=1e-3)
    assert generic_card(12).reported_bytes / GIB == pytest.approx(11.479, abs=1e-3)
    assert generic_card(16).reported_bytes / GIB == pytest.approx(15.438, abs=1e-3)
    assert generic_card(24).reported_bytes / GIB == pytest.approx(23.517, abs=1e-3)
    for spec in catalogue.SPECS.values():
        if spec.reported_mib is not None and not spec.ecc:
            assert generic_card(spec.marketed_gib).reported_bytes <= CARDS[spec.name].reported_bytes
    assert [generic_card(size).rates_of for size in (8, 12, 24, 48)] == ["rtx4060", "rtx3060_12gb", "rtx3090", "a6000"]
    assert generic_card(8).name == "8 GB card"
    assert generic_card(8).precision == "bf16"


def test_smallest_fitting_card() -> None:
    def smallest(peak_bytes: int, num_devices: int = 1, off_share: float = 0.0) -> str | None:
        card = smallest_fitting_card(peak_bytes, off_share, num_devices)
        return card and card.name

    assert smallest(1) == "rtx3050_6gb"
    edge = CARDS["rtx4060"].budget_bytes(2)
    assert smallest(edge, 2) == "rtx4060"
    assert smallest(CARDS["rtx3070ti"].budget_bytes(2) + 1, 2) == "rtx3080_10gb"
    assert smallest(60 * GIB) == "a100_80gb"
    # 10 % of the peak is more than the card's headroom
    assert smallest(edge, 2, 0.1) == "rtx3080_10gb"
    assert smallest(200 * GIB) is None
