"""Records what a step allocates and frees, operation by operation, while it runs on fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from planner.cuda_rules import Scratch, scratch_phases
from planner.fake_ops import FakeOps
from planner.traced import Mark, Trace, TracedTensor

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
        self.closed = False  # once closed, what dies is the trace's own end
        self._compute_capability = compute_capability
        self._numbers: dict[int, int] = {}  # storage → number; 0 and up

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it costs as much as an operation

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return _CPU  # two dispatches in three; FakeTensorMode would answer the same, at length
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
            self.trace.flops.append((int(count_flops(*args, **(kwargs or {}), out_val=result)), again))
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
        """Leave out a tensor of the host, and views of it. It must outlive the recording."""
        self._numbers[tensor.untyped_storage()._cdata] = _HOST

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
        weakref.finalize(storage, self._free, key, number)

    def _free(self, key: int, number: int) -> None:
        if self.closed:
            return
        del self._numbers[key]
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


class TracedView(Sequence[Tensor]):
    """A view of which `recorder` knows when a micro-batch is asked for, and that its pixels are inputs."""

    def __init__(self, view: Sequence[Tensor], recorder: Recorder) -> None:
        self._view, self._recorder = view, recorder

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if index >= len(self):
            raise IndexError(index)
        self._recorder.mark(self._recorder.loop(), index)
        before, self._recorder.phase = self._recorder.phase, "augmentation"
        pixels = self._view[index]
        self._recorder.phase = before
        self._recorder.add(pixels, "pixels", "inputs")
        return pixels


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


@contextmanager
def phases(recorder: Recorder, moco: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Tell `recorder` which module runs, and mark where each micro-batch begins, while the context is open."""
    handles: list[Any] = []
    stack: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(recorder.phase)
            recorder.phase = name

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(*arguments: Any) -> None:
            if name in ENCODERS:
                recorder.mark("through")
                output = arguments[-1]
                if recorder.loop() == "forward" and output is not None and output.requires_grad:
                    output.register_hook(lambda _: recorder.mark("backward"))
            recorder.phase = stack.pop()

        return hook

    for name in (*ENCODERS, *HEADS):
        module = moco.get_submodule(name)
        # recomputation stops early by an exception: the hook must run all the same
        handles += [
            module.register_forward_pre_hook(enter(name)),
            module.register_forward_hook(leave(name), always_call=True),
        ]
    handles.append(optimizer.register_step_pre_hook(enter("optimizer")))
    handles.append(optimizer.register_step_post_hook(leave("optimizer")))
    recorder.phase = "loss"
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
