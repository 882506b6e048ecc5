"""Internal allocations of CUDA kernels and libraries, counted by hand from their sources."""

from __future__ import annotations

import pytest
import torch

from planner.trace.cuda_rules import attention_backend, cublas_workspaces, scratch_phases

HALF, FULL = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("compute_capability", "half", "full"),
    [(70, "efficient", "efficient"), (75, "efficient", "efficient"), (80, "flash", "efficient"),
     (86, "flash", "efficient"), (89, "flash", "efficient"), (90, "cudnn", "efficient"), (100, "cudnn", "efficient"),
     (103, "cudnn", "efficient"), (120, "flash", "efficient")],
)  # fmt: skip
def test_attention_backend_of_the_card(compute_capability: int, half: str, full: str) -> None:
    assert attention_backend(compute_capability, torch.float16) == half
    assert attention_backend(compute_capability, torch.float32) == full


@pytest.mark.parametrize(
    ("compute_capability", "dtype", "width", "phases"),
    [
        # 197 tokens are padded to 256, 40 columns to 64
        (86, HALF, 32, [[2 * 3 * 256 * 4, 2 * 3 * 256 * 32 * 4]]),
        (89, HALF, 40, [[2 * 3 * 256 * 4, 2 * 3 * 256 * 64 * 4]]),
        (90, HALF, 32, [[2 * 3 * 197 * 33 * 4]]),
        # 197 tokens are 4 tiles of 64 × 64: 16,384 bytes and 16 for locks, for 32 columns as for 64
        (75, HALF, 32, [[2 * 3 * 197 * 4, 2 * 3 * 4 * 16_400]]),
        (75, HALF, 64, [[2 * 3 * 197 * 4, 2 * 3 * 4 * 16_400]]),
        (86, FULL, 32, [[2 * 3 * 197 * 32 * 4], [2 * 3 * 197 * 4, 2 * 3 * 4 * 16_400]]),
    ],
)
def test_scratch_of_attention_backward(
    compute_capability: int, dtype: torch.dtype, width: int, phases: list[list[int]]
) -> None:
    query = torch.empty(2, 3, 197, width, dtype=dtype, device="meta")
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    found = scratch_phases(backward, (query, query), compute_capability)
    assert [[size for _, size in phase] for phase in found] == phases
    assert all(shape[0] == 2 for phase in found for shape, _ in phase)  # grows with the micro-batch


def test_other_kernels_have_no_scratch() -> None:
    assert scratch_phases(torch.ops.aten.gelu.default, (torch.empty(4),), 86) == []


@pytest.mark.parametrize(
    ("compute_capability", "version", "workspaces"),
    [
        (86, "2.11.0+cu130", [8_519_680, 1 << 20] * 2),
        (90, "2.11.0", [32 << 20, 1 << 20] * 2),
        (120, "2.11.0", [8_519_680, 1 << 20] * 2),
        (86, "2.14.1", [8_519_680] * 2),
        (90, "2.14.1", [32 << 20] * 2),
        (120, "2.14.1", [32 << 20] * 2),
        (86, "2.15.0", [8_519_680]),
        (100, "2.15.0", [32 << 20]),
    ],
)
def test_cublas_workspaces_of_card_and_version(compute_capability: int, version: str, workspaces: list[int]) -> None:
    assert cublas_workspaces(compute_capability, version) == workspaces
