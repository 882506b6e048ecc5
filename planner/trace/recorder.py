"""Record the allocations, frees, operations and collectives of a step that runs on fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import ScriptObject, Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from planner.trace.cuda_rules import Scratch, scratch_phases
from planner.trace.events import Collective, Mark, OperationFlops, Trace, TracedTensor
from planner.trace.fake_ops import FakeOps

_CPU = torch.device("cpu")
_HOST = -1
_ENGINE_USES, _ENGINE_STORAGE_USES = 4, 2
HEADS = ("projector", "predictor", "momentum_projector")
ENCODERS = ("encoder", "momentum_encoder")


class Recorder(TorchDispatchMode):
    """Record an event when a storage appears for the first time and when it is freed.

    Attributes:
        phase: The part of the step that runs; `step_hooks.record_phases` sets it.
        closed: Once set, frees are not recorded.
        compute_capability: Adds the internal allocations of CUDA kernels on such a card; None adds nothing.
    """

    def __init__(self, fake_ops: FakeOps, compute_capability: int | None) -> None:
        super().__init__()
        self._fake_ops = fake_ops
        self.trace = Trace()
        self.phase = "setup"
        self.backward_of = "loss"
        self.closed = False
        self.compute_capability = compute_capability
        self._numbers: dict[int, int] = {}  # storage → tensor number, or _HOST
        self._resized_to_zero: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard costs as much as an operation

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return _CPU  # two dispatches in three, and slow in FakeTensorMode
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # a DTensor has no storage; operations on its local tensor are dispatched again
        if func.namespace == "bitsandbytes":
            return None  # its CUDA kernels update state and parameter in place, without temporaries
        if _is_gradient_sum_in_place(func, args):
            return args[0]
        result = self._fake_ops.run(func, args, kwargs or {})
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._numbers:
                self._allocate(tensor, str(func), self._category(func, args))
        self._count(func, args, kwargs or {}, result)
        if self.compute_capability is not None:
            for phase in scratch_phases(func, args, self.compute_capability):
                self._record_scratch(phase, str(func))
        return result

    def _count(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        count_flops = flop_registry.get(func.overloadpacket)
        if count_flops is not None:
            recomputed = bool(self.trace.marks) and self.trace.marks[-1].kind == "recomputed"
            flops = int(count_flops(*args, **kwargs, out_val=result))
            self.trace.flops.append(OperationFlops(flops, recomputed, self._part()))
        collective = _find_collective(func, args, self._phase_or_backward(), self.trace.marks)
        if collective is not None:
            self.trace.collectives.append(collective)

    def number_of(self, tensor: Tensor) -> int | None:
        """Return the number of the tensor's storage; None if it is not recorded or of the host."""
        number = self._numbers.get(tensor.untyped_storage()._cdata)
        return None if number == _HOST else number

    def record(self, tensor: Tensor, operation: str, category: str) -> None:
        """Record a tensor that no dispatched operation made, or set the category of a recorded one."""
        number = self.number_of(tensor)
        if number is None:
            self._allocate(tensor, operation, category)
        else:
            self.trace.tensors[number].category = category

    def ignore(self, tensor: Tensor) -> None:
        """Leave out a tensor of the host and its views."""
        storage = tensor.untyped_storage()
        self._numbers[storage._cdata] = _HOST
        weakref.finalize(storage, self._numbers.pop, storage._cdata, None)

    def record_resize(self, storage: torch.UntypedStorage) -> None:
        """Record that a storage was freed or allocated by `resize_`, which FSDP2 does with gathered weights."""
        number = self._numbers.get(storage._cdata, _HOST)
        if number == _HOST or self.closed:
            return
        tensor = self.trace.tensors[number]
        tensor.category = "weights"
        if not storage.nbytes():
            self.trace.events.append((number, 0))
            self._resized_to_zero.add(storage._cdata)
        elif storage._cdata in self._resized_to_zero:
            self._resized_to_zero.remove(storage._cdata)
            again = replace(tensor, operation="gathered again", phase=self._phase_or_backward())
            self._numbers[storage._cdata] = self._append(again)

    def reserve(self, size_bytes: int, operation: str, category: str) -> None:
        """Record bytes that a library allocates and never frees."""
        self._append(TracedTensor(size_bytes, (size_bytes,), operation, self.phase, category))

    def mark(self, kind: str, index: int = -1) -> None:
        """Append a mark, see `Mark`."""
        self.trace.marks.append(Mark(len(self.trace.events), kind, index))

    def encoder_pass(self) -> str:
        """Return the pass in which an encoder runs now: "keys", "forward" or "recomputed"."""
        if torch._C._current_autograd_node() is not None:  # type: ignore[attr-defined]
            return "recomputed"
        return "forward" if torch.is_grad_enabled() else "keys"

    def _allocate(self, tensor: Tensor, operation: str, category: str) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if not size:
            return
        traced = TracedTensor(size, tuple(tensor.shape), operation, self._phase_or_backward(), category)
        self._numbers[storage._cdata] = self._append(traced)
        weakref.finalize(storage, self._free, storage._cdata)

    def _append(self, tensor: TracedTensor) -> int:
        number = len(self.trace.tensors)
        self.trace.tensors.append(tensor)
        self.trace.events.append((number, tensor.size_bytes))
        return number

    def _free(self, key: int) -> None:
        if self.closed:
            return
        number = self._numbers.pop(key)
        if key in self._resized_to_zero:
            self._resized_to_zero.remove(key)
            return
        self.trace.events.append((number, 0))
        # a tensor of a forward with gradient that a backward frees was saved by the graph
        tensor = self.trace.tensors[number]
        if tensor.category == "forward":
            tensor.category = "temporaries" if torch.is_grad_enabled() else "activations"

    def _record_scratch(self, phase: Sequence[Scratch], operation: str) -> None:
        part = self._phase_or_backward()
        numbers = [self._append(TracedTensor(size, shape, operation, part, "temporaries")) for shape, size in phase]
        self.trace.events += [(number, 0) for number in numbers]

    def _phase_or_backward(self) -> str:
        if torch._C._current_autograd_node() is None:  # type: ignore[attr-defined]
            return self.phase
        return "recomputed forward" if torch.is_grad_enabled() else "backward"

    def _part(self) -> str:
        if self.phase == "augmentation":
            return self.phase
        if torch._C._current_autograd_node() is not None:  # type: ignore[attr-defined]
            return self.backward_of
        self.backward_of = "loss"  # the next backward begins with the loss
        return "heads" if self.phase in HEADS else self.phase

    def _category(self, func: Any, args: Sequence[Any]) -> str:
        if func is torch.ops.aten._to_copy.default:
            number = self.number_of(args[0])
            source = "" if number is None else self.trace.tensors[number].category
            if source in ("weights", "momentum_weights"):
                return source  # autocast's 16-bit copy
        phase = self._phase_or_backward()
        if phase in HEADS or phase == "loss":
            return "heads"
        forward = torch.is_grad_enabled() and phase not in ("optimizer", "augmentation")
        return "forward" if forward else "temporaries"


def _is_gradient_sum_in_place(func: Any, args: Sequence[Any]) -> bool:
    """Return whether the autograd engine adds to a gradient that it alone holds.

    The engine does so in place, but never for tensor subclasses such as fake tensors. The use counts are those of a
    tensor that only the engine and this call hold (torch/csrc/autograd/input_buffer.cpp).
    """
    if func is not torch.ops.aten.add.Tensor or torch.is_grad_enabled() or not isinstance(args[0], Tensor):
        return False
    if torch._C._current_autograd_node() is None or args[0]._use_count() != _ENGINE_USES:  # type: ignore[attr-defined]
        return False
    storage = args[0].untyped_storage()._cdata
    return bool(torch._C._storage_Use_Count(storage) == _ENGINE_STORAGE_USES)  # type: ignore[attr-defined]


def _find_collective(func: Any, args: Sequence[Any], phase: str, marks: Sequence[Mark]) -> Collective | None:
    """Return the collective that a dispatched operation performs; None if it is not one.

    Only keys are gathered as rows; sharded parameters are gathered flat. An all-reduce outside networks and backward is
    the gradient buffer's, one inside is BatchNorm's.
    """
    if func.namespace != "c10d":
        return None
    leaves = tree_leaves(list(args))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    operation, what = _collective_kind(func.overloadpacket.__name__, tensors, phase)
    group = dist.ProcessGroup.unbox(next(leaf for leaf in leaves if isinstance(leaf, ScriptObject)))
    ranks = dist.get_process_group_ranks(group)
    apart = ranks[1] - ranks[0] if len(ranks) > 1 else 1
    micro_batch = next((mark.index for mark in reversed(marks) if mark.kind != "forward end"), -1)
    size = max(tensor.numel() * tensor.itemsize for tensor in tensors)
    return Collective(operation, what, size, len(ranks), apart, micro_batch)


def _collective_kind(name: str, tensors: Sequence[Tensor], phase: str) -> tuple[str, str]:
    if "gather" in name:
        return "all-gather", "keys" if tensors[0].dim() > 1 else "parameters"
    if "reduce_scatter" in name:
        return "reduce-scatter", "gradients"
    assert name == "allreduce_", f"the step calls {name}, which is not counted"
    return "all-reduce", "gradients" if phase == "loss" else "batch_norm"
