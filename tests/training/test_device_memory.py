"""Planned memory against the GPU: refused, warned about, or compared with the measured peak."""

from __future__ import annotations

import pytest
import torch
from support.recipes import small_recipe

from moco_accel.common.errors import UserError
from moco_accel.processes.control_group import ControlGroup
from moco_accel.recipe.encoder_names import ASSUMED_PEAK_ERROR
from moco_accel.recipe.hardware_sections import Planned
from moco_accel.training import device_memory
from moco_accel.training.device_memory import PlannedMemory, format_peak_comparison

RECIPE = small_recipe(encoder={"name": "vit_small_patch16"})
PLANNED = Planned(peak_reserved_mib=5000, headroom_mib=1500, breakdown_mib={}, torch="2.11")


def test_messages() -> None:
    assert device_memory.explain_shortage(5050, 1, 3100, 8192, ["game 4500 MiB", "firefox 300 MiB"]) == (
        "planned.peak_reserved_mib=5050 does not fit the GPU of rank 1: 3100 MiB of 8192 MiB are free, 1950 MiB too "
        "few (held by game 4500 MiB, firefox 300 MiB). Try: close other programs that use the GPU, or plan for the "
        "free memory with moco-plan --vram 3.0"
    )
    assert format_peak_comparison(5050, 5250, 0.05) == "peak memory: predicted 5050 MiB, measured 5250 MiB, +4.0%"
    assert format_peak_comparison(5050, 5400, 0.05).startswith(
        "[yellow]peak memory: predicted 5050 MiB, measured 5400 MiB, +6.9%: more"
    )
    rows = "12, 300, /usr/bin/firefox\n7, 9, me\n13, 4500, C:\\games\\game\n[N/A], x\n"
    assert device_memory.parse_gpu_processes(rows, own_pid=7) == ["game 4500 MiB", "firefox 300 MiB"]
    assert ASSUMED_PEAK_ERROR == {"ViT": 0.05, "ResNet": 0.10}


def fake_gpu_memory(monkeypatch: pytest.MonkeyPatch, free: int, *peaks: int) -> None:
    """Let CUDA report free memory and peaks, in MiB."""
    left = list(peaks)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free << 20, 8192 << 20))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: left.pop(0) << 20)


@pytest.mark.parametrize(
    ("planned", "free", "peaks", "expected"),
    [
        (None, 100, [], ["the recipe has no memory plan for this GPU; moco-plan --recipe shows whether it fits"]),
        (PLANNED, 7000, [4800, 5100, 5200], ["peak memory: predicted 5000 MiB, measured 5100 MiB, +2.0%"]),
        (
            PLANNED,
            5100,
            [4800, 4900, 5300],
            [
                "[yellow]the GPU of rank 0 has 5100 MiB free for a planned peak of 5000 MiB, which may be off by 5%; "
                "if it does not fit, the run continues in smaller micro-batches[/]",
                "peak memory: predicted 5000 MiB, measured 4900 MiB, -2.0%",
                "[yellow]peak memory: predicted 5000 MiB, measured 5300 MiB, +6.0%: more than the planner's error "
                "margin of 5%[/]",
            ],
        ),
    ],
    ids=["no plan", "fits", "may not fit"],
)
def test_plan_and_peak(
    planned: Planned | None, free: int, peaks: list[int], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu_memory(monkeypatch, free, *peaks)
    lines: list[str] = []
    memory = PlannedMemory(RECIPE, planned, ControlGroup(), torch.device("cuda"), lines.append)
    memory.check()
    for _ in peaks:
        memory.after_step()
    assert lines == expected


def test_a_plan_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu_memory(monkeypatch, 4999)
    monkeypatch.setattr(device_memory, "other_gpu_processes", lambda _: [])
    memory = PlannedMemory(RECIPE, PLANNED, ControlGroup(), torch.device("cuda"), print)
    expected = "=5000 does not fit the GPU of rank 0: 4999 MiB of 8192 MiB are free, 1 MiB too"
    with pytest.raises(UserError, match=expected):
        memory.check()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_plan_against_a_real_gpu() -> None:
    lines: list[str] = []
    fits, too_large = (PLANNED.model_copy(update={"peak_reserved_mib": size}) for size in (1, 1 << 21))
    device = torch.device("cuda", 0)
    memory = PlannedMemory(RECIPE, fits, ControlGroup(), device, lines.append)
    memory.check()
    assert lines == []
    held = torch.zeros(64 << 20, dtype=torch.uint8, device=device)
    for _ in range(2):
        memory.after_step()
    del held
    assert lines[0].startswith("[yellow]peak memory: predicted 1 MiB, measured ")
    with pytest.raises(UserError, match="does not fit the GPU of rank 0"):
        PlannedMemory(RECIPE, too_large, ControlGroup(), device, lines.append).check()
