"""Apply CUDA's autocast rules to CPU tensors: which operations run in 16 bits, and which in fp32.

Source: the lists of ATen/autocast_mode.h, PyTorch 2.11-2.15. `tests/planner/test_autocast_rules.py` compares them with
the installed header. Which operations have a CUDA rule is read from the installed PyTorch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[Any], Callable[..., Any]]
_KEY = "AutocastCPU"
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

# AT_FORALL_LOWER_PRECISION_FP without the operations that CPU autocast casts too: their own rules cache 16-bit weights
LOWER_PRECISION = (
    "_convolution", "convolution", "addmv", "addr", "einsum", "mv", "chain_matmul", "linalg_multi_dot", "lstm_cell",
    "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
)  # fmt: skip
FP32 = (  # AT_FORALL_FP32
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
    "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm", "native_layer_norm",
    "rms_norm", "group_norm", "frobenius_norm.dim", "nuclear_norm", "nuclear_norm.dim", "cosine_similarity",
    "poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d", "hinge_embedding_loss", "kl_div", "l1_loss",
    "smooth_l1_loss", "huber_loss", "mse_loss", "margin_ranking_loss", "multilabel_margin_loss", "soft_margin_loss",
    "triplet_margin_loss", "multi_margin_loss", "binary_cross_entropy_with_logits", "dist", "pdist", "cdist", "renorm",
    "logsumexp", "upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_nearest2d", "_upsample_nearest_exact2d",
    "upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "_upsample_bilinear2d_aa", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
)  # fmt: skip
FP32_BY_DTYPE = (  # AT_FORALL_FP32_SET_OPT_DTYPE
    "prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm",
    "linalg_matrix_norm", "linalg_matrix_norm.str_ord", "sum", "sum.dim_IntList",
)  # fmt: skip
FP32_BY_OVERLOAD = {  # AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE: only another overload takes a dtype
    "norm.Scalar": "norm.ScalarOpt_dtype", "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype",
}  # fmt: skip
PROMOTE = (  # AT_FORALL_PROMOTE
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot",
    "scatter_add",
)  # fmt: skip
EXCLUDED = (
    # CPU tensors do not dispatch to them
    "_scaled_dot_product_flash_attention", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell",
    # the step uses no named tensors
    "prod.dim_Dimname", "softmax.Dimname", "log_softmax.Dimname", "cumprod.dimname", "cumsum.dimname",
    "sum.dim_DimnameList", "norm.names_ScalarOpt_dim",
)  # fmt: skip


@contextmanager
def cuda_autocast_rules() -> Iterator[None]:
    """Make `torch.autocast("cpu")` cast the same operations as `torch.autocast("cuda")` inside the context."""
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that a CPU rule is replaced, as intended
            _replace_rules(library)
        yield
    finally:
        library._destroy()


def _replace_rules(library: Any) -> None:
    on_cuda, on_cpu = _registered_operations("AutocastCUDA"), _registered_operations(_KEY)
    rules: tuple[tuple[Any, Rule], ...] = (
        (LOWER_PRECISION, partial(_cast_to, lambda values: torch.get_autocast_dtype("cpu"))),
        (FP32, partial(_cast_to, lambda values: torch.float32)),
        (FP32_BY_DTYPE, _with_fp32_dtype),
        (FP32_BY_OVERLOAD, _by_overload),
        (PROMOTE, partial(_cast_to, _widest)),
    )
    for names, rule in rules:
        for name in on_cuda.intersection(names):
            library.impl(name, rule(_operation(name)), _KEY, allow_override=True)
    for name in on_cpu - on_cuda:
        library.impl(name, torch.library.fallthrough_kernel, _KEY, allow_override=True)


def _registered_operations(key: str) -> set[str]:
    """Return the ATen operations for which autocast's dispatch key `key` has a rule."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name.removeprefix("aten::") for name in names if name.startswith("aten::")}


def _operation(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _widest(values: list[Any]) -> torch.dtype:
    has_fp32 = any(tensor.dtype == torch.float32 for tensor in _tensors(values))
    return torch.float32 if has_fp32 else torch.get_autocast_dtype("cpu")


def _cast_to(choose: Callable[[list[Any]], torch.dtype], operation: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = choose([*args, *kwargs.values()])
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            return operation(*_cast(args, dtype), **{name: _cast(value, dtype) for name, value in kwargs.items()})

    return run


def _with_fp32_dtype(operation: Any) -> Callable[..., Any]:
    """Pass dtype=float32 to the operation, as CUDA does, unless the caller passes a dtype."""
    position = [argument.name for argument in operation._schema.arguments].index("dtype")

    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = args[position] if len(args) > position else kwargs.get("dtype")
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            if dtype is not None or not _is_cast(args[0]):
                return operation(*args, **kwargs)
            return operation(*args[:position], **{**kwargs, "dtype": torch.float32})

    return run


def _by_overload(operation: Any) -> Callable[..., Any]:
    other = _operation(FP32_BY_OVERLOAD[operation._schema.name.removeprefix("aten::") + "." + operation._overloadname])
    defaults = [argument.default_value for argument in operation._schema.arguments]

    def run(*args: Any) -> Any:
        dtype = torch.float32 if _is_cast(args[0]) else args[0].dtype
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            return other(*args, *defaults[len(args) :], dtype=dtype)

    return run


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _tensors(value)
        elif _is_cast(value):
            yield value


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_cast(each, dtype) for each in value)
    return value.to(dtype) if _is_cast(value) else value


def _is_cast(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
