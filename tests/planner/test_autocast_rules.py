"""The autocast rules against CUDA's lists and CUDA's own autocast, for every operation."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from planner.trace import autocast_rules
from planner.trace.autocast_rules import cuda_autocast_rules

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
HALF, FULL = torch.bfloat16, torch.float32
OURS = {
    "LOWER_PRECISION_FP": autocast_rules.LOWER_PRECISION,
    "FP32": autocast_rules.FP32,
    "FP32_SET_OPT_DTYPE": autocast_rules.FP32_BY_DTYPE,
    "DIFFERENT_REDISPATCH_SIGNATURE": tuple(autocast_rules.FP32_BY_OVERLOAD),
    "PROMOTE": autocast_rules.PROMOTE,
}
NOT_CALLED = {
    **dict.fromkeys(autocast_rules.EXCLUDED, "not replaced; the list says why"),
    "binary_cross_entropy": "CUDA's autocast refuses it",
    "gru_cell": "one fused kernel on CUDA, which fake tensors do not support",
    **dict.fromkeys(("_cudnn_rnn", "cudnn_convolution", "cudnn_convolution_transpose"), "not dispatched to on CPU"),
}

Make = Callable[..., Tensor]
Sample = Callable[[Make, Make], tuple[Any, ...]]


def image(t: Make, dims: int = 2) -> Tensor:
    return t(2, 3, *[8] * dims)


def kernel(t: Make, dims: int = 2) -> Tensor:
    return t(5, 3, *[3] * dims)


def convolution(t: Make) -> tuple[Any, ...]:
    return image(t), kernel(t), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1


# operations → arguments; `t` makes a float tensor, `i` an integer tensor
SAMPLES: list[tuple[str, Sample]] = [
    ("acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan softplus prod sum nuclear_norm",
     lambda t, i: (t(4, 4),)),
    ("linalg_vector_norm pdist trace linalg_matrix_sqrth", lambda t, i: (t(4, 4),)),
    ("prod.dim_int softmax.int log_softmax.int cumprod cumsum", lambda t, i: (t(4, 4), 1)),
    ("sum.dim_IntList frobenius_norm.dim logsumexp", lambda t, i: (t(4, 4), [1])),
    ("linalg_matrix_norm", lambda t, i: (t(4, 4), 2.0)),
    ("linalg_matrix_norm.str_ord", lambda t, i: (t(4, 4), "fro")),
    ("nuclear_norm.dim", lambda t, i: (t(4, 4), [0, 1])),
    ("norm.Scalar pow.Tensor_Scalar", lambda t, i: (t(4, 4), 2)),
    ("norm.ScalarOpt_dim", lambda t, i: (t(4, 4), 2, [1])),
    ("pow.Scalar", lambda t, i: (2, t(4, 4))),
    ("renorm", lambda t, i: (t(4, 4), 2, 0, 1.0)),
    ("layer_norm rms_norm", lambda t, i: (t(4, 4), [4], t(4))),
    ("native_layer_norm", lambda t, i: (t(4, 4), [4], t(4), t(4), 1e-5)),
    ("group_norm", lambda t, i: (image(t, 1), 3, t(3), t(3))),
    ("kl_div l1_loss smooth_l1_loss huber_loss mse_loss hinge_embedding_loss soft_margin_loss dist atan2 linear cdist "
     "mm pow.Tensor_Tensor binary_cross_entropy_with_logits matmul cosine_similarity linalg_vecdot polar",
     lambda t, i: (t(4, 4), t(4, 4))),
    ("poisson_nll_loss", lambda t, i: (t(4, 4), t(4, 4), True, False, 1e-8, 1)),
    ("cosine_embedding_loss", lambda t, i: (t(4, 4), t(4, 4), t(4))),
    ("margin_ranking_loss", lambda t, i: (t(4), t(4), t(4))),
    ("triplet_margin_loss addcdiv addcmul addmm", lambda t, i: (t(4, 4), t(4, 4), t(4, 4))),
    ("nll_loss multi_margin_loss cross_entropy_loss", lambda t, i: (t(4, 4), i(4))),
    ("multilabel_margin_loss", lambda t, i: (t(4, 4), i(4, 4))),
    ("nll_loss2d", lambda t, i: (image(t), i(2, 8, 8))),
    ("upsample_nearest1d _upsample_nearest_exact1d", lambda t, i: (image(t, 1), [4])),
    ("upsample_nearest2d _upsample_nearest_exact2d", lambda t, i: (image(t), [4, 4])),
    ("upsample_nearest3d _upsample_nearest_exact3d", lambda t, i: (image(t, 3), [4, 4, 4])),
    ("upsample_linear1d", lambda t, i: (image(t, 1), [4], False)),
    ("upsample_bilinear2d _upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa",
     lambda t, i: (image(t), [4, 4], False)),
    ("upsample_trilinear3d", lambda t, i: (image(t, 3), [4, 4, 4], False)),
    ("bilinear", lambda t, i: (t(4, 4), t(4, 4), t(5, 4, 4))),
    ("cross", lambda t, i: (t(4, 3), t(4, 3), 1)),
    ("dot vdot", lambda t, i: (t(4), t(4))),
    ("grid_sampler grid_sampler_2d", lambda t, i: (image(t), t(2, 4, 4, 2), 0, 0, False)),
    ("index_put", lambda t, i: (t(4, 4), [i(2)], t(2, 4))),
    ("index_copy", lambda t, i: (t(4, 4), 0, i(2), t(2, 4))),
    ("scatter_add", lambda t, i: (t(4, 4), 1, i(4, 4), t(4, 4))),
    ("tensordot", lambda t, i: (t(4, 4), t(4, 4), [1], [0])),
    ("cat stack chain_matmul linalg_multi_dot", lambda t, i: ([t(4, 4), t(4, 4)],)),
    ("conv1d", lambda t, i: (image(t, 1), kernel(t, 1))),
    ("conv2d", lambda t, i: (image(t), kernel(t))),
    ("conv3d", lambda t, i: (image(t, 3), kernel(t, 3))),
    ("conv2d.padding", lambda t, i: (image(t), kernel(t), None, [1, 1], "same")),
    ("conv_tbc", lambda t, i: (t(8, 2, 3), t(3, 3, 5), t(5))),
    ("conv_transpose1d", lambda t, i: (image(t, 1), t(3, 5, 3))),
    ("conv_transpose2d.input", lambda t, i: (image(t), t(3, 5, 3, 3))),
    ("conv_transpose3d.input", lambda t, i: (image(t, 3), t(3, 5, 3, 3, 3))),
    ("convolution", lambda t, i: convolution(t)),
    ("_convolution.deprecated", lambda t, i: (*convolution(t), False, False, True)),
    ("_convolution", lambda t, i: (*convolution(t), False, False, True, True)),
    ("prelu", lambda t, i: (t(4, 4), t(1))),
    ("addmv", lambda t, i: (t(4), t(4, 4), t(4))),
    ("addr", lambda t, i: (t(4, 4), t(4), t(4))),
    ("mv", lambda t, i: (t(4, 4), t(4))),
    ("einsum", lambda t, i: ("ij,jk->ik", [t(4, 4), t(4, 4)])),
    ("bmm", lambda t, i: (t(2, 4, 4), t(2, 4, 4))),
    ("addbmm", lambda t, i: (t(4, 4), t(2, 4, 4), t(2, 4, 4))),
    ("baddbmm", lambda t, i: (t(2, 4, 4), t(2, 4, 4), t(2, 4, 4))),
    ("lstm_cell", lambda t, i: (t(2, 3), [t(2, 4), t(2, 4)], t(16, 3), t(16, 4), t(16), t(16))),
    ("rnn_tanh_cell rnn_relu_cell", lambda t, i: (t(2, 3), t(2, 4), t(4, 3), t(4, 4), t(4), t(4))),
    ("scaled_dot_product_attention", lambda t, i: (t(2, 2, 8, 16), t(2, 2, 8, 16), t(2, 2, 8, 16))),
    ("avg_pool3d max_pool3d adaptive_avg_pool3d adaptive_max_pool3d", lambda t, i: (image(t, 3), [2, 2, 2])),
    ("reflection_pad1d replication_pad1d", lambda t, i: (image(t, 1), [1, 1])),
    ("reflection_pad2d replication_pad2d", lambda t, i: (image(t), [1, 1, 1, 1])),
]  # fmt: skip
ARGUMENTS = {name: sample for names, sample in SAMPLES for name in names.split()}


def published_lists() -> dict[str, str]:
    """The list of each operation in the installed header."""
    lists: dict[str, str] = {}
    for name, body in re.findall(r"#define AT_FORALL_(\w+)\(_\)((?:[^\n]*\\\n)+[^\n]*)", HEADER.read_text()):
        if name in OURS:
            simple = re.findall(r"_\((\w+)(?:,\s*(\w+))?\)", body)
            operations = ["".join((packet, "." * bool(overload), overload)) for packet, overload in simple]
            lists |= dict.fromkeys([*operations, *re.findall(r'"(\w+\.\w+)"', body)], name)
    return lists


def dtypes(operation: str, device: str, given: str) -> list[torch.dtype] | str:
    """Dtypes of the results under `device`'s autocast to bf16, for arguments of 16 or 32 bits, or of both."""
    made = 0

    def floats(*shape: int) -> Tensor:
        nonlocal made
        made += 1
        dtype = {"half": HALF, "full": FULL, "mixed": (HALF, FULL)[made % 2]}[given]
        return torch.empty(shape, device=device, dtype=dtype)

    def integers(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device, dtype=torch.long)

    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated operations
        arguments = ARGUMENTS[operation](floats, integers)
        # torch.autocast("cuda") refuses to open without a GPU, but its switches work
        torch.set_autocast_dtype(device, HALF)
        torch.set_autocast_enabled(device, True)
        try:
            returned = autocast_rules._operation(operation)(*arguments)
        except (RuntimeError, ValueError) as error:
            return str(error)
        finally:
            torch.set_autocast_enabled(device, False)
            torch.clear_autocast_cache()
    return [value.dtype for value in tree_leaves(returned) if isinstance(value, Tensor)]


def listed_dtype(name: str, given: str) -> torch.dtype:
    if name == "PROMOTE":
        return HALF if given == "half" else FULL
    return HALF if name == "LOWER_PRECISION_FP" else FULL


def registered() -> set[str]:
    return autocast_rules._registered_operations("AutocastCUDA") | autocast_rules._registered_operations("AutocastCPU")


def falls_through(key: str) -> set[str]:
    """The registered operations that autocast's `key` does not cast."""
    tables = {name: torch._C._dispatch_dump_table(f"aten::{name}") for name in registered()}
    return {name for name, table in tables.items() if f"\n{key}: fallthrough" in table}


def test_every_published_operation_is_in_the_right_list() -> None:
    lists, on_cpu = published_lists(), autocast_rules._registered_operations("AutocastCPU")
    counts = {name: list(lists.values()).count(name) for name in OURS}
    assert all(counts[name] >= least for name, least in zip(OURS, (30, 55, 11, 2, 11), strict=True)), counts
    for operation, name in lists.items():
        by_cpu = name == "LOWER_PRECISION_FP" and operation in on_cpu  # the CPU's own rule, compared below
        assert (operation in OURS[name]) + (operation in autocast_rules.EXCLUDED) + by_cpu == 1, operation
    for name, operations in OURS.items():  # and none of ours is unknown
        unknown = {operation for operation in operations if lists.get(operation, name) != name}
        unknown |= set(operations) - set(lists) - {"rms_norm"}  # 2.11 has no rule for rms_norm
        assert not unknown, unknown


def test_same_operations_are_not_cast_as_on_cuda() -> None:
    before, on_cuda = falls_through("AutocastCPU"), falls_through("AutocastCUDA")
    assert len(before ^ on_cuda) > 100  # the CPU's own rules differ
    with cuda_autocast_rules():
        assert falls_through("AutocastCPU") ^ on_cuda <= set(NOT_CALLED)
    assert falls_through("AutocastCPU") == before


def test_results_have_the_same_dtypes_as_on_cuda() -> None:
    """CUDA's rules run on fake tensors, without a GPU."""
    assert registered() - set(ARGUMENTS) - set(NOT_CALLED) <= falls_through("AutocastCUDA")
    lists = published_lists()
    compared = 0
    for operation in sorted(registered() & set(ARGUMENTS)):
        for given in ("half", "full", "mixed"):
            cudas = dtypes(operation, "cuda", given)
            with cuda_autocast_rules():
                ours = dtypes(operation, "cpu", given)
            if "NVIDIA driver" not in cudas:  # 2.11 needs one for some operations
                assert ours == cudas, (operation, given)
                compared += isinstance(ours, list)
            if operation in lists and isinstance(ours, list):  # linalg_matrix_norm refuses bf16
                assert set(ours) == {listed_dtype(lists[operation], given)}, (operation, given)
    print(f"{compared} calls compared")
    assert compared > 350


def test_operations_of_networks_run_in_the_same_dtype_as_on_cuda() -> None:
    half, weight = torch.ones(4, 8, dtype=HALF), torch.ones(8, 8)
    with cuda_autocast_rules(), torch.autocast("cpu", dtype=HALF):
        assert functional.linear(half, weight).dtype == HALF
        assert functional.layer_norm(half, (8,)).dtype == FULL
        assert functional.softmax(half, 1).dtype == FULL
        assert functional.normalize(half).dtype == FULL
        assert functional.gelu(half).dtype == HALF
        assert functional.cross_entropy(half, torch.zeros(4, dtype=torch.long)).dtype == FULL
        assert functional.adaptive_avg_pool3d(half[None, None, None], 1).dtype == HALF
    with torch.autocast("cpu", dtype=HALF):  # the CPU's own rules are restored
        assert functional.layer_norm(half, (8,)).dtype == HALF
        assert functional.adaptive_avg_pool3d(half[None, None, None], 1).dtype == FULL
