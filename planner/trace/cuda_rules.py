"""Where CUDA's kernels and libraries allocate otherwise than the CPU on which a step is traced.

What is left out is below a hundredth of a peak, or the library's secret:
- cuDNN's convolutions take a workspace while they run; heuristics choose its size (`benchmark=False`). A margin.
- cuDNN's batch norm, which fp16 and fp32 images take and bf16 does not, may keep a reserve for backward.
- cuDNN's first convolution copies contiguous pixels to channels-last: their own bytes, far from the peak.
- LayerNorm's backward takes up to 4 MiB each for the partial sums of weight and bias.
- The memory-efficient kernel pads its row sums to 32 rows; flash attention keeps two blocks of 512 bytes a layer.

Sources: PyTorch 2.11-2.15, ATen/cuda/CublasHandlePool.cpp, ATen/native/Normalization.cpp,
ATen/native/cuda/layer_norm_kernel.cu and ATen/native/transformers/cuda: sdp_utils.cpp, attention_backward.cu,
flash_attn/flash_api.cpp, mem_eff_attention/kernel_backward.h; cudnn-frontend, its node of attention's backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["flash", "cudnn", "efficient"]
Scratch = tuple[tuple[int, ...], int]
"""Shape and bytes of a tensor inside a kernel."""

CUBLAS_WORKSPACE_BYTES = 8_519_680  # 4096 KiB x 2 + 16 KiB x 8
CUBLAS_WORKSPACE_BYTES_LARGE = 32 << 20
CUBLASLT_WORKSPACE_BYTES = 1 << 20
_ATTENTION_BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"
_EFFICIENT_TILE = 64  # rows and columns of q's gradient in one block of the memory-efficient kernel
_FLOAT = 4


def cublas_workspaces(compute_capability: int, torch_version: str = torch.__version__) -> list[int]:
    """Bytes of each workspace that cuBLAS holds in the allocator on a card of `compute_capability` (86 is 8.6).

    Up to 2.14 the handles of the main thread and of backward's own each keep one from their first product on; 2.11
    keeps cuBLASLt's apart. From 2.15 on every product takes one and gives it back, which counts here as one kept.
    """
    version = _version(torch_version)
    # read off the libraries of 2.11 and 2.14; the change for Blackwell is pull request 175344, after 2.11
    large = compute_capability // 10 in (9, 10, 11, 12) if version >= (2, 12) else compute_capability == 90
    each = [CUBLAS_WORKSPACE_BYTES_LARGE if large else CUBLAS_WORKSPACE_BYTES]
    if version < (2, 12):
        each.append(CUBLASLT_WORKSPACE_BYTES)
    return each if version >= (2, 15) else each * 2


def attention_backend(compute_capability: int, dtype: torch.dtype) -> Backend:
    """The kernel that attention without mask and dropout takes, heads of up to 128 a multiple of 8 wide.

    Hopper and data-centre Blackwell prefer cuDNN's where it is newer than 9.15.0, as in PyTorch's CUDA 13 builds since
    2.11; older ones take flash attention there, with about the same scratch.
    """
    if dtype not in (torch.float16, torch.bfloat16) or compute_capability < 80:
        return "efficient"
    return "cudnn" if compute_capability // 10 in (9, 10) else "flash"


def scratch_phases(func: Any, args: Sequence[Any], compute_capability: int = 86) -> list[list[Scratch]]:
    """What CUDA's kernel for `func` allocates inside, unseen by dispatch, after its outputs.

    The tensors of one phase live together, and are gone before those of the next. 16-bit tensors on a card before
    Ampere stand for fp16.
    """
    if func.overloadpacket.__name__ != _ATTENTION_BACKWARD:
        return []
    query: Tensor = args[1]
    backend = attention_backend(compute_capability, query.dtype)
    return {"flash": _flash, "cudnn": _cudnn, "efficient": _efficient}[backend](query)


def _flash(query: Tensor) -> list[list[Scratch]]:
    """A row sum, and dq summed in fp32; rows up to 128, columns up to 32 (beyond 128 wide: 64)."""
    tiles, heads, tokens, width = query.shape
    tokens, width = _up(tokens, 128), _up(width, 32 if width <= 128 else 64)
    return [[_fp32(tiles, heads, tokens), _fp32(tiles, tokens, heads, width)]]


def _cudnn(query: Tensor) -> list[list[Scratch]]:
    """dq in fp32 and a row sum, in one workspace. What the engine itself wants beside them is not known."""
    tiles, heads, tokens, width = query.shape
    return [[_fp32(tiles, heads, tokens, width + 1)]]


def _efficient(query: Tensor) -> list[list[Scratch]]:
    """A row sum, and dq in fp32, in tiles of 64 × 64 with 16 bytes of locks, however narrow a head is.

    In fp32 the row sum is taken outside the kernel, over a product as large as q.
    """
    tiles, heads, tokens, width = query.shape
    blocks = math.ceil(tokens / _EFFICIENT_TILE) * math.ceil(width / _EFFICIENT_TILE)
    inside = [_fp32(tiles, heads, tokens), _fp32(tiles, heads, blocks, _EFFICIENT_TILE**2 + 4)]
    return [[_fp32(tiles, tokens, heads, width)], inside] if query.dtype == torch.float32 else [inside]


def _fp32(*shape: int) -> Scratch:
    return shape, _FLOAT * math.prod(shape)


def _up(size: int, unit: int) -> int:
    return math.ceil(size / unit) * unit


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
