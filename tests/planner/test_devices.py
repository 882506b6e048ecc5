"""Cards by name and by size: bytes, rates, mistakes, and this machine's."""

from __future__ import annotations

import dataclasses
import platform
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from moco_accel.common.errors import UserError
from planner.cards import catalogue as table
from planner.cards import devices
from planner.cards.catalogue import parse_vram
from planner.cards.devices import (
    CARDS,
    CONTEXT_BYTES,
    DESKTOP_BYTES,
    GIB,
    MIB,
    NCCL_BYTES,
    Card,
    card_named,
    cards_of_this_machine,
    generic_card,
    list_cards_table,
    smallest_card_with,
    spills_to_system_memory,
)
from planner.cards.fleet import Fleet, fleet, smallest_of


def test_a_card_s_budget_is_what_it_reports_less_what_others_take() -> None:
    card = CARDS["rtx3070"]
    assert card.reported_bytes == 7834 * MIB
    assert card.desktop_bytes == DESKTOP_BYTES == 512 * MIB
    assert card.outside_bytes(1) == CONTEXT_BYTES == 426 * MIB
    assert card.outside_bytes(2) == CONTEXT_BYTES + NCCL_BYTES == 682 * MIB
    assert card.headroom_bytes / MIB == pytest.approx(391.7)
    assert card.budget_bytes(2) / MIB == pytest.approx(7834 - 512 - 682 - 391.7, abs=1e-3)
    free = dataclasses.replace(card, taken_bytes=0)
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
def test_rates_are_the_data_sheets_own(
    name: str, capability: int, precision: str, tflops: float, bandwidth: float
) -> None:
    card = CARDS[name]
    assert (card.compute_capability, card.precision) == (capability, precision)
    assert (card.tensor_tflops, card.bandwidth_gb_per_second) == (tflops, bandwidth)


# cores × GHz × 4 on GeForce from Ampere on, × 8 on Turing and workstation cards; the worst is 0.35 % off, by rounding
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


def test_the_table_holds_together() -> None:
    assert len(CARDS) == len(table.GEFORCE) + len(table.WORKSTATION) + len(table.DATA_CENTRE)
    for sold in table.SOLD.values():
        assert re.fullmatch("[a-z0-9]+(_[a-z0-9]+)?", sold.name)
        assert (sold.reported_mib is None) == (sold.source == "")
        if sold.reported_mib is not None:
            share = sold.reported_mib / (1024 * sold.marketed_gib)
            assert (table.ASSUMED_SHARE_ECC if sold.ecc else table.ASSUMED_SHARE) < share < 1
        assert 0.05 < sold.tensor_tflops / sold.bandwidth_gb_per_second < 0.5  # a slip of the pen is further off
    assert list(CARDS.values()) == sorted(CARDS.values(), key=lambda card: card.marketed_gib)
    assert set(table.ALSO_SOLD_AS.values()) <= set(CARDS)
    names = [card.name for card in CARDS.values() if card.needs is not None]
    assert names == ["v100_16gb", "v100_32gb"]


def test_an_unreported_figure_is_marked_and_low() -> None:
    assert CARDS["rtx5060"].assumed
    assert CARDS["rtx5060"].reported_bytes / GIB == pytest.approx(7.52)
    assert not CARDS["rtx3070"].assumed
    row = next(row for row in list_cards_table() if row[0] == "rtx5060")
    assert row[:3] == ("rtx5060", "NVIDIA GeForce RTX 5060", 8)
    assert row[3] == pytest.approx(7.52)
    assert row[4:] == (True, 12.0, "bf16", 38.4, 448)
    assert len(list_cards_table()) == len(CARDS)


@pytest.mark.parametrize(
    ("said", "meant"),
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
def test_a_card_goes_by_many_names(said: str, meant: str) -> None:
    assert card_named(said) is CARDS[meant]


def test_every_card_goes_by_its_own_name_and_some_product_name() -> None:
    for name, card in CARDS.items():
        assert card_named(name) is card
        assert card_named(card.product or "", card.marketed_gib) is card


def refusal(*arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        fleet(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        (
            "rtx3071",
            "--gpu=rtx3071 is not known; nearest: rtx3070, rtx3070ti, rtx3080; --list-gpus names all, "
            "--vram 8 works for any card",
        ),
        ("RTX 3060", "--gpu=RTX 3060 could be rtx3060_8gb or rtx3060_12gb; --gpu rtx3060_8gb works"),
        ("h100", "--gpu=h100 could be h100_sxm or h100_pcie or h100_nvl; --gpu h100_sxm works"),
        ("GTX 1080 Ti", "has no tensor cores, and such cards are left out; --list-gpus names the rest"),
        ("p100", "--gpu=p100 has no tensor cores"),
        ("", "--gpu= is not known"),
        ("rtx3070,", "--gpu= is not known"),
        ("rtx 3070\nrtx 3090", "--gpu=rtx 3070 rtx 3090 is not known"),
    ],
)
def test_a_name_that_is_not_one_card_s_is_refused(gpu: str, message: str) -> None:
    assert message in refusal(gpu, None, None)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("8", [8]), ("8,12", [8, 12]), ("8GB", [8]), ("8 GiB", [8]), ("8g, 12 gb", [8, 12]), ("7.5", [7.5])],
)
def test_vram_is_read_as_people_write_it(text: str, sizes: list[float]) -> None:
    assert parse_vram(text) == sizes


@pytest.mark.parametrize(
    "text", ["0", "-1", "abc", "", "8,,12", "8,", "inf", "nan", "1e3", "10000", "9" * 400, "8 TB", "8;12", "8,0", "٨"]
)
def test_vram_that_no_card_is_sold_with_is_refused(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_vram(text)
    assert str(caught.value) == f"--vram={text} must be the GB a card is sold with; --vram 8 works"


def test_a_generic_card_reports_no_more_than_a_real_one_of_its_size() -> None:
    assert generic_card(8).reported_bytes / GIB == pytest.approx(7.623, abs=1e-3)
    assert generic_card(12).reported_bytes / GIB == pytest.approx(11.479, abs=1e-3)
    assert generic_card(16).reported_bytes / GIB == pytest.approx(15.438, abs=1e-3)
    assert generic_card(24).reported_bytes / GIB == pytest.approx(23.517, abs=1e-3)
    for sold in table.SOLD.values():
        if sold.reported_mib is not None and not sold.ecc:
            assert generic_card(sold.marketed_gib).reported_bytes <= CARDS[sold.name].reported_bytes
    assert [generic_card(size).rates_of for size in (8, 12, 24, 48)] == ["rtx4060", "rtx3060_12gb", "rtx3090", "a6000"]
    assert generic_card(8).name == "8 GB card"
    assert generic_card(8).precision == "bf16"


def test_a_fleet_is_as_many_cards_as_are_named() -> None:
    assert fleet(None, None, None) is fleet(None, None, 2) is None
    assert fleet(None, "8", None) == Fleet((generic_card(8),))
    assert fleet(None, "8", 2) == fleet(None, "8,8", None) == fleet(None, "8,8", 2) == Fleet((generic_card(8),) * 2)
    assert fleet("rtx 3070", None, 3) == fleet("rtx3070", "8", 3) == Fleet((CARDS["rtx3070"],) * 3)
    two = Fleet((CARDS["rtx3070"], CARDS["rtx3060_12gb"]))
    assert fleet("rtx3070,rtx3060_12gb", None, None) == fleet("rtx3070, rtx3060", "8,12", 2) == two
    assert fleet("rtx3060", "12", None) == Fleet((CARDS["rtx3060_12gb"],))
    assert fleet("rtx3060", "8,12", None) == Fleet((CARDS["rtx3060_8gb"], CARDS["rtx3060_12gb"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rtx3070", "12", None), "--vram=12 but rtx3070 has 8 GB; --gpu rtx3070 alone works"),
        (("rtx3060", "10", None), "--vram=10 but rtx3060 has 8 or 12 GB; --gpu rtx3060_8gb alone works"),
        ((None, "8,12", 3), "--gpus=3 but --vram=8,12 names 2 cards; --gpus 2 works"),
        (("rtx3070,rtx3090", None, 1), "--gpus=1 but --gpu=rtx3070,rtx3090 names 2 cards; --gpus 2 works"),
        (("rtx3070,rtx3090", "8,24,24", None), "names 2 cards and --vram=8,24,24 3; --gpu alone works"),
        ((None, "8", 0), "--gpus=0 must be at least 1; --gpus 1 works"),
        ((None, "0.5", None), "--vram=0.5 leaves nothing after the driver's and the desktop's share; --vram 8 works"),
    ],
)
def test_flags_that_disagree_are_refused(arguments: tuple[str | None, str | None, int | None], message: str) -> None:
    assert message in refusal(*arguments)


def named(*names: str) -> Fleet:
    return Fleet(tuple(CARDS[name] for name in names))


def test_equal_cards_decide_as_one() -> None:
    pair = named("rtx3070", "rtx3070")
    assert not pair.unlike
    assert pair.deciding == CARDS["rtx3070"]
    assert pair.note is None


def test_the_smallest_card_decides_for_unlike_ones() -> None:
    pair = fleet(None, "8,12", None)
    assert pair is not None
    assert pair.unlike
    assert pair.deciding.budget_bytes(2) == generic_card(8).budget_bytes(2)
    assert pair.note == (
        "the 8 GB card decides: every process trains the same micro-batch; 4 GB of the 12 GB card stay unused"
    )


def test_of_unlike_cards_the_slowest_and_the_oldest_decide_too() -> None:
    three = named("rtx3060_12gb", "rtx2080super", "rtx3060_12gb")
    deciding = three.deciding
    assert (deciding.name, deciding.reported_bytes) == ("rtx2080super", 7982 * MIB)
    assert (deciding.compute_capability, deciding.precision) == (75, "fp16")
    assert (deciding.tensor_tflops, deciding.bandwidth_gb_per_second) == (25.5, 360)
    assert deciding.rates_of == "rtx3060_12gb"
    assert three.note == (
        "the 8 GB card decides: every process trains the same micro-batch; 4 GB of each 12 GB card stay unused; "
        "fp16, because rtx2080super has no bf16; rtx3060_12gb sets the pace"
    )
    assert named("rtx3060ti", "rtx3070").note == "rtx3060ti sets the pace"


def test_the_smallest_is_the_one_with_the_smallest_budget_then_the_slowest() -> None:
    small, large = CARDS["rtx3070"], CARDS["rtx3060_12gb"]
    assert smallest_of([large, small]) is small
    busy = dataclasses.replace(large, taken_bytes=6 * GIB)
    assert smallest_of([small, busy]) is busy
    slow = dataclasses.replace(small, name="slow", tensor_tflops=1)
    assert smallest_of([small, slow, large]) is slow


def test_the_smallest_card_that_would_do() -> None:
    def would_do(peak_bytes: int, num_devices: int = 1, off_share: float = 0.0) -> str | None:
        card = smallest_card_with(peak_bytes, off_share, num_devices)
        return card and card.name

    assert would_do(1) == "rtx3050_6gb"
    edge = CARDS["rtx4060"].budget_bytes(2)
    assert would_do(edge, 2) == "rtx4060"
    assert would_do(CARDS["rtx3070ti"].budget_bytes(2) + 1, 2) == "rtx3080_10gb"
    assert would_do(60 * GIB) == "a100_80gb"
    # a tenth of the peak is more than the card's own headroom
    assert would_do(edge, 2, 0.1) == "rtx3080_10gb"
    assert would_do(200 * GIB) is None


@pytest.mark.parametrize(
    ("system", "release", "spills"),
    [
        ("Linux", "6.8.0-45-generic", False),
        ("Linux", "5.15.153.1-microsoft-standard-WSL2", True),
        ("Linux", "4.4.0-19041-Microsoft", True),
        ("Windows", "10", True),
    ],
)
def test_where_the_driver_spills(monkeypatch: pytest.MonkeyPatch, system: str, release: str, spills: bool) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert spills_to_system_memory() is spills


def here(name: str, total_mib: float, free_mib: float, major: int = 8, minor: int = 6) -> Card:
    properties = SimpleNamespace(name=name, total_memory=int(total_mib * MIB), major=major, minor=minor)
    return devices._card_here(properties, int(free_mib * MIB))


def test_a_card_of_this_machine_is_what_cuda_says_of_it() -> None:
    card = here("NVIDIA GeForce RTX 3070", 7840, free_mib=7840 - 426 - 700)
    assert (card.name, card.marketed_gib, card.reported_bytes) == ("NVIDIA GeForce RTX 3070", 8, 7840 * MIB)
    assert (card.tensor_tflops, card.rates_of) == (40.6, None)
    assert card.taken_bytes == card.desktop_bytes == 704 * MIB  # 700, in steps of 64
    assert card.budget_bytes(1) / MIB == pytest.approx(7840 - 704 - 426 - 392, abs=1e-3)
    idle = here("NVIDIA GeForce RTX 3070", 7840, free_mib=7840 - 290)  # its own context is smaller than the allowance
    assert idle.taken_bytes == idle.desktop_bytes == 0


def test_the_variant_of_this_machine_is_told_by_its_memory() -> None:
    assert here("NVIDIA GeForce RTX 3060", 12044, 11000).bandwidth_gb_per_second == 360
    assert here("NVIDIA GeForce RTX 3060", 7830, 7000).bandwidth_gb_per_second == 240
    assert here("NVIDIA GeForce RTX 4060 Ti", 8188, 7000).marketed_gib == 8
    assert here("NVIDIA A100 80GB PCIe", 81154, 80000).tensor_tflops == 312
    assert here("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97250, 96000).marketed_gib == 96


def test_an_unknown_card_of_this_machine_takes_rates_of_its_size() -> None:
    card = here("NVIDIA Something New", 7.6 * 1024, 7 * 1024, major=13, minor=1)
    assert (card.name, card.marketed_gib, card.rates_of) == ("NVIDIA Something New", 8, "rtx4060")
    assert card.compute_capability == 131
    assert here("NVIDIA A100 80GB PCIe MIG 1g.10gb", 9728, 9000).rates_of == "rtx3080_10gb"
    assert here("NVIDIA GeForce MX150", 1999, 1500).marketed_gib == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_machine_without_gpus_has_no_cards() -> None:
    assert cards_of_this_machine() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_this_machine_s_cards() -> None:
    for index, card in enumerate(cards_of_this_machine()):
        properties = torch.cuda.get_device_properties(index)
        assert card.reported_bytes == properties.total_memory
        assert card.reported_bytes <= card.marketed_gib * GIB * 1.01
        assert card.taken_bytes is not None
        assert 0 < card.budget_bytes(1) < card.reported_bytes


def test_naming_cards_needs_no_torch() -> None:
    code = "import sys; from planner.fleet import fleet; fleet('rtx3070', '8', 2); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
