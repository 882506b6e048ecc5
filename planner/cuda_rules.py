"""Where CUDA allocates otherwise than the CPU on which a step is traced.

Sources: PyTorch 2.11-2.15, ATen/autocast_mode.h (operation lists), ATen/cuda/CUDABlas (workspaces) and
ATen/native/transformers/cuda (attention's scratch memory).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# ATen/autocast_mode.h: AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE, as far as CPU autocast does not agree
# and a network or a loss may call them
FP32 = (
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
    "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm", "native_layer_norm",
    "rms_norm", "group_norm", "cosine_similarity", "cosine_embedding_loss", "nll_loss", "nll_loss_nd", "nll_loss2d",
    "hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss",
    "binary_cross_entropy_with_logits", "dist", "cdist", "renorm", "logsumexp",
)  # fmt: skip
FP32_BY_DTYPE = (
    "prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm", "sum",
    "sum.dim_IntList",
)  # fmt: skip
_HALVES = (torch.float16, torch.bfloat16)

CUBLAS_WORKSPACE_BYTES = 8_519_680  # 4096 KiB x 2 + 16 KiB x 8, per (handle, stream)
CUBLAS_WORKSPACE_BYTES_LARGE = 32 << 20  # Hopper and Blackwell
_ATTENTION_BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"


def cublas_workspace_bytes(compute_capability: int) -> int:
    """Bytes cuBLAS keeps on a card of `compute_capability` (86 is 8.6), in the allocator's reserved memory.

    Before PyTorch 2.15 the backward's own thread kept a second one.
    """
    each = CUBLAS_WORKSPACE_BYTES_LARGE if compute_capability in (90, 100, 103, 120) else CUBLAS_WORKSPACE_BYTES
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return each if (major, minor) >= (2, 15) else 2 * each


def scratch_shapes(func: Any, args: Sequence[Any]) -> list[tuple[tuple[int, ...], int]]:
    """(shape, bytes) of what CUDA's kernel for `func` allocates inside, unseen by dispatch.

    Flash attention's backward sums dq in fp32 `[B, N up to 128, heads, head_dim up to 32]` and keeps a row sum.
    """
    if func.overloadpacket.__name__ != _ATTENTION_BACKWARD:
        return []
    query = args[1]
    tiles, heads, tokens, width = query.shape
    tokens, width = math.ceil(tokens / 128) * 128, math.ceil(width / 32) * 32
    rows = (tiles, heads, tokens)
    if query.dtype not in _HALVES:
        return [(rows, 4 * math.prod(rows))]  # the memory-efficient kernel, which fp32 takes, keeps the row sums only
    return [(rows, 4 * math.prod(rows)), ((*rows, width), 4 * math.prod(rows) * width)]


@contextmanager
def cuda_autocast_rules() -> Iterator[None]:
    """While open, `torch.autocast("cpu")` keeps in fp32 what `torch.autocast("cuda")` keeps in fp32."""
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that a CPU rule is replaced, which is what we want
            for name in FP32:
                _register(library, name, _in_fp32)
            for name in FP32_BY_DTYPE:
                _register(library, name, _with_fp32_dtype)
        yield
    finally:
        library._destroy()


def _register(library: Any, name: str, rule: Callable[[Any], Callable[..., Any]]) -> None:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default", None)
    if operation is not None:
        library.impl(name, rule(operation), "AutocastCPU", allow_override=True)


_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def _in_fp32(operation: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            return operation(*(_to_fp32(a) for a in args), **{k: _to_fp32(v) for k, v in kwargs.items()})

    return run


def _with_fp32_dtype(operation: Any) -> Callable[..., Any]:
    """CUDA passes dtype=float32 on to these where the caller named none."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            if args[0].dtype in _HALVES and kwargs.get("dtype") is None and not _names_dtype(operation, args):
                return _call_with_dtype(operation, args, kwargs)
            return operation(*args, **kwargs)

    return run


def _names_dtype(operation: Any, args: Sequence[Any]) -> bool:
    place = _dtype_place(operation)
    return place is not None and len(args) > place and args[place] is not None


def _call_with_dtype(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    place = _dtype_place(operation)
    if place is not None:
        args = [*args[:place], torch.float32, *args[place + 1 :]] if len(args) > place else args
        if len(args) > place:
            return operation(*args, **kwargs)
    return operation(*args, **{**kwargs, "dtype": torch.float32})


def _dtype_place(operation: Any) -> int | None:
    """Position of `dtype` among the operation's positional arguments; None where it is keyword-only."""
    for place, argument in enumerate(operation._schema.arguments):
        if argument.name == "dtype":
            return None if argument.kwarg_only else place
    return None


def _to_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALVES else value
