"""Allocations of CUDA kernels and libraries that a trace on CPU tensors does not show.

Not modelled, because they are below 1 % of a peak or not documented:
- cuDNN's convolutions allocate a workspace while they run; heuristics choose its size (`benchmark=False`). The error
  margin of ResNets covers it.
- cuDNN's batch norm, which runs for fp16 and fp32 images but not for bf16, may keep a reserve for backward.
- cuDNN's first convolution copies contiguous pixels to channels-last, far from the peak.
- LayerNorm's backward allocates up to 4 MiB each for the partial sums of weight and bias.
- The memory-efficient kernel pads its row sums to 32 rows; flash attention keeps two blocks of 512 bytes per layer.

Sources: PyTorch 2.11-2.15, ATen/cuda/CublasHandlePool.cpp, ATen/native/Normalization.cpp,
ATen/native/cuda/layer_norm_kernel.cu and ATen/native/transformers/cuda: sdp_utils.cpp, attention_backward.cu,
flash_attn/flash_api.cpp, mem_eff_attention/kernel_backward.h; cudnn-frontend, node of the attention backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from planner.cards.card import round_up

Backend = Literal["flash", "cudnn", "efficient"]
Scratch = tuple[tuple[int, ...], int]
"""Shape and bytes of a tensor that a kernel allocates internally."""

CUBLAS_WORKSPACE_BYTES = 8_519_680  # 4096 KiB x 2 + 16 KiB x 8
CUBLAS_WORKSPACE_BYTES_LARGE = 32 << 20
CUBLASLT_WORKSPACE_BYTES = 1 << 20
_ATTENTION_BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"
_EFFICIENT_TILE = 64  # rows and columns of q's gradient in one block of the memory-efficient kernel
_FLOAT = 4


def cublas_workspaces(compute_capability: int, torch_version: str = torch.__version__) -> list[int]:
    """Return the bytes of each cuBLAS workspace in the allocator on a card of `compute_capability` (86 is 8.6).

    Up to PyTorch 2.14 the handles of the main thread and of the backward thread each keep a workspace from their first
    matrix product on; 2.11 keeps a separate one for cuBLASLt. From 2.15 on every product allocates and frees one, which
    counts as one that is kept.
    """
    version = tuple(int(part) for part in torch_version.split(".")[:2])
    # read from the libraries of 2.11 and 2.14; the change for Blackwell is pytorch/pytorch#175344, after 2.11
    large = compute_capability // 10 in (9, 10, 11, 12) if version >= (2, 12) else compute_capability == 90
    each = [CUBLAS_WORKSPACE_BYTES_LARGE if large else CUBLAS_WORKSPACE_BYTES]
    if version < (2, 12):
        each.append(CUBLASLT_WORKSPACE_BYTES)
    return each if version >= (2, 15) else each * 2


def attention_backend(compute_capability: int, dtype: torch.dtype) -> Backend:
    """Return the attention kernel for inputs without mask and dropout and head widths up to 128 that 8 divides.

    Hopper and data-centre Blackwell prefer cuDNN newer than 9.15.0, which PyTorch's CUDA 13 builds have since 2.11.
    Older builds use flash attention there, with about the same scratch memory.
    """
    if dtype not in (torch.float16, torch.bfloat16) or compute_capability < 80:
        return "efficient"
    return "cudnn" if compute_capability // 10 in (9, 10) else "flash"


def scratch_phases(func: Any, args: Sequence[Any], compute_capability: int = 86) -> list[list[Scratch]]:
    """Return the tensors that CUDA's kernel for `func` allocates internally after its outputs, phase by phase.

    The tensors of a phase live together and are freed before the next phase. 16-bit tensors on a card before Ampere
    stand for fp16.
    """
    if func.overloadpacket.__name__ != _ATTENTION_BACKWARD:
        return []
    query: Tensor = args[1]
    backend = attention_backend(compute_capability, query.dtype)
    return {"flash": _flash, "cudnn": _cudnn, "efficient": _efficient}[backend](query)


def _flash(query: Tensor) -> list[list[Scratch]]:
    """A row sum and dq in fp32; rows padded to 128, columns to 32 (to 64 for heads wider than 128)."""
    tiles, heads, tokens, width = query.shape
    tokens, width = round_up(tokens, 128), round_up(width, 32 if width <= 128 else 64)
    return [[_fp32(tiles, heads, tokens), _fp32(tiles, tokens, heads, width)]]


def _cudnn(query: Tensor) -> list[list[Scratch]]:
    """dq in fp32 and a row sum, in one workspace. The engine's own workspace is not known."""
    tiles, heads, tokens, width = query.shape
    return [[_fp32(tiles, heads, tokens, width + 1)]]


def _efficient(query: Tensor) -> list[list[Scratch]]:
    """A row sum, and dq in fp32 in tiles of 64 × 64 with 16 bytes of locks, for any head width.

    In fp32 the row sum is computed outside the kernel, from a product as large as q.
    """
    tiles, heads, tokens, width = query.shape
    blocks = math.ceil(tokens / _EFFICIENT_TILE) * math.ceil(width / _EFFICIENT_TILE)
    inside = [_fp32(tiles, heads, tokens), _fp32(tiles, heads, blocks, _EFFICIENT_TILE**2 + 4)]
    return [[_fp32(tiles, tokens, heads, width)], inside] if query.dtype == torch.float32 else [inside]


def _fp32(*shape: int) -> Scratch:
    return shape, _FLOAT * math.prod(shape)
