"""Records what a step allocates and frees, operation by operation, while it runs on fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from planner.trace.communication import sent_by
from planner.trace.cuda_rules import Scratch, scratch_phases
from planner.trace.events import Counted, Mark, Trace, TracedTensor
from planner.trace.fake_ops import FakeOps

_CPU = torch.device("cpu")
_HOST = -1
HEADS = ("projector", "predictor", "momentum_projector")
_ENGINE_USES, _ENGINE_STORAGE_USES = 4, 2
ENCODERS = ("encoder", "momentum_encoder")


class Recorder(TorchDispatchMode):
    """Emits an event when a storage is first seen and when it dies.

    With `compute_capability`, allocations that CUDA's kernels on such a card make inside an operation are added.
    """

    def __init__(self, fake_ops: FakeOps, compute_capability: int | None) -> None:
        super().__init__()
        self._fake_ops = fake_ops
        self.trace = Trace()
        self.phase = "setup"
        self.backward_of = "loss"  # what backward is in, by `phases`
        self.closed = False  # once closed, what dies is the trace's own end
        self._compute_capability = compute_capability
        self._numbers: dict[int, int] = {}  # storage → number; 0 and up
        self._empty: set[int] = set()  # storages that have given back their bytes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it costs as much as an operation

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return _CPU  # two dispatches in three; FakeTensorMode would answer the same, at length
        if any(issubclass(kind, DTensor) for kind in types):
            return (
                NotImplemented  # a divided tensor has no storage of its own; what it asks of its part comes here again
            )
        if func.namespace == "bitsandbytes":
            return None  # its CUDA kernels update state and parameter in place, without temporaries
        if _summed_in_place(func, args):
            return args[0]
        result = self._fake_ops.run(func, args, kwargs or {})
        if isinstance(result, Tensor):
            self._see(result, func, args)
        elif isinstance(result, tuple | list):
            for tensor in result:
                if isinstance(tensor, Tensor):
                    self._see(tensor, func, args)
        count_flops = flop_registry.get(func.overloadpacket)
        if count_flops is not None:
            again = bool(self.trace.marks) and self.trace.marks[-1].loop == "recomputed"
            flops = int(count_flops(*args, **(kwargs or {}), out_val=result))
            self.trace.flops.append(Counted(flops, again, self._part()))
        if (sent := sent_by(func, args, self._where(), self.trace.marks)) is not None:
            self.trace.sent.append(sent)
        if self._compute_capability is not None:
            for phase in scratch_phases(func, args, self._compute_capability):
                self._scratch(phase, str(func))
        return result

    def number_of(self, tensor: Tensor) -> int | None:
        """The number of the tensor's storage, if it was seen and lives."""
        number = self._numbers.get(tensor.untyped_storage()._cdata)
        return None if number == _HOST else number

    def add(self, tensor: Tensor, operation: str, category: str) -> None:
        """Record a tensor that was made unseen, or give a recorded one its category."""
        number = self.number_of(tensor)
        if number is None:
            self._allocate(tensor, operation, category)
        else:
            self.trace.tensors[number].category = category

    def ignore(self, tensor: Tensor) -> None:
        """Leave out a tensor of the host, and views of it."""
        storage = tensor.untyped_storage()
        self._numbers[storage._cdata] = _HOST
        weakref.finalize(storage, self._numbers.pop, storage._cdata, None)

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage gave back its bytes, or has them again: gathered weights, which is all that does so."""
        number = self._numbers.get(storage._cdata, _HOST)
        if number == _HOST or self.closed:
            return
        tensor = self.trace.tensors[number]
        tensor.category = "weights"
        if not storage.nbytes():
            self.trace.events.append((number, 0))
            self._empty.add(storage._cdata)
        elif storage._cdata in self._empty:
            self._empty.remove(storage._cdata)
            self._numbers[storage._cdata] = len(self.trace.tensors)
            self.trace.events.append((len(self.trace.tensors), storage.nbytes()))
            self.trace.tensors.append(replace(tensor, operation="gathered again", phase=self._where()))

    def reserve(self, size_bytes: int, operation: str, category: str) -> None:
        """Record bytes that a library keeps for good."""
        self.trace.events.append((len(self.trace.tensors), size_bytes))
        self.trace.tensors.append(TracedTensor(size_bytes, (size_bytes,), operation, self.phase, category))

    def mark(self, loop: str, index: int = -1) -> None:
        self.trace.marks.append(Mark(len(self.trace.events), loop, index))

    def loop(self) -> str:
        """What an encoder runs for."""
        if torch._C._current_autograd_node() is not None:  # type: ignore[attr-defined]
            return "recomputed"
        return "forward" if torch.is_grad_enabled() else "keys"

    def _see(self, tensor: Tensor, func: Any, args: Sequence[Any]) -> None:
        if tensor.untyped_storage()._cdata not in self._numbers:
            self._allocate(tensor, str(func), self._category(func, args))

    def _allocate(self, tensor: Tensor, operation: str, category: str) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if not size:
            return
        key, number = storage._cdata, len(self.trace.tensors)
        self._numbers[key] = number
        self.trace.tensors.append(TracedTensor(size, tuple(tensor.shape), operation, self._where(), category))
        self.trace.events.append((number, size))
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        if self.closed:
            return
        number = self._numbers.pop(key)
        if key in self._empty:
            self._empty.remove(key)
            return
        self.trace.events.append((number, 0))
        # saved by a graph: made in a forward with gradient, gone in a backward
        tensor = self.trace.tensors[number]
        if tensor.category == "forward":
            tensor.category = "temporaries" if torch.is_grad_enabled() else "activations"

    def _scratch(self, phase: Sequence[Scratch], operation: str) -> None:
        first = len(self.trace.tensors)
        for shape, size in phase:
            self.trace.tensors.append(TracedTensor(size, shape, operation, self._where(), "temporaries"))
        self.trace.events += [(first + place, size) for place, (_, size) in enumerate(phase)]
        self.trace.events += [(first + place, 0) for place in range(len(phase))]

    def _where(self) -> str:
        if torch._C._current_autograd_node() is None:  # type: ignore[attr-defined]
            return self.phase
        return "recomputed forward" if torch.is_grad_enabled() else "backward"

    def _part(self) -> str:
        if self.phase == "augmentation":
            return self.phase
        if torch._C._current_autograd_node() is not None:  # type: ignore[attr-defined]
            return self.backward_of
        self.backward_of = "loss"  # with which the next backward begins
        return "heads" if self.phase in HEADS else self.phase

    def _category(self, func: Any, args: Sequence[Any]) -> str:
        if func is torch.ops.aten._to_copy.default:
            number = self.number_of(args[0])
            source = "" if number is None else self.trace.tensors[number].category
            if source in ("weights", "momentum_weights"):
                return source  # autocast's 16-bit copy
        where = self._where()
        if where in HEADS or where == "loss":
            return "heads"
        forward = torch.is_grad_enabled() and where not in ("optimizer", "augmentation")
        return "forward" if forward else "temporaries"


def _summed_in_place(func: Any, args: Sequence[Any]) -> bool:
    """Is this the autograd engine adding to a gradient that nobody else holds?

    It does so in place, but never to a tensor of a subclass, as fake ones are. The counts are those of a tensor held
    by the engine and by this call alone (torch/csrc/autograd/input_buffer.cpp).
    """
    if func is not torch.ops.aten.add.Tensor or torch.is_grad_enabled() or not isinstance(args[0], Tensor):
        return False
    if torch._C._current_autograd_node() is None or args[0]._use_count() != _ENGINE_USES:  # type: ignore[attr-defined]
        return False
    storage = args[0].untyped_storage()._cdata
    return bool(torch._C._storage_Use_Count(storage) == _ENGINE_STORAGE_USES)  # type: ignore[attr-defined]
