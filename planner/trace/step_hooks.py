"""Hooks that tell a recorder which part of the step runs, where each micro-batch begins, and what FSDP2 resizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import device_mesh
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes

from moco_accel.processes.control_group import ControlGroup, use_control_group
from planner.trace.events import Trace
from planner.trace.recorder import ENCODERS, HEADS, Recorder


class TracedView(Sequence[Tensor]):
    """A view that marks each requested micro-batch in `recorder` and records its pixels as inputs."""

    def __init__(self, view: Sequence[Tensor], recorder: Recorder) -> None:
        self._view, self._recorder = view, recorder

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if index >= len(self):
            raise IndexError(index)
        self._recorder.mark(self._recorder.encoder_pass(), index)
        before, self._recorder.phase = self._recorder.phase, "augmentation"
        pixels = self._view[index]
        self._recorder.phase = before
        self._recorder.record(pixels, "pixels", "inputs")
        return pixels


@contextmanager
def record_phases(recorder: Recorder, moco: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Set the recorder's phase to the module that runs, and mark where backward passes begin, inside the context."""
    stack: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(recorder.phase)
            recorder.phase = name
            if name in ENCODERS and recorder.encoder_pass() == "recomputed":  # its backward begins with it
                recorder.backward_of = name

        return hook

    def begin_backward(name: str) -> None:
        recorder.backward_of = "heads" if name in HEADS else name
        if name in ENCODERS:
            recorder.mark("backward")

    def leave(name: str) -> Callable[..., None]:
        def hook(*arguments: Any) -> None:
            if name in ENCODERS:
                recorder.mark("forward end")
            output = arguments[-1]
            if isinstance(output, Tensor) and recorder.encoder_pass() == "forward" and output.requires_grad:
                output.register_hook(lambda _: begin_backward(name))
            recorder.phase = stack.pop()

        return hook

    with ExitStack() as handles:
        for name in (*ENCODERS, *HEADS):
            module = moco.get_submodule(name)
            handles.enter_context(module.register_forward_pre_hook(enter(name)))
            # recomputation ends early with an exception, after which the hook must run too
            handles.enter_context(module.register_forward_hook(leave(name), always_call=True))
        handles.enter_context(optimizer.register_step_pre_hook(enter("optimizer")))
        handles.enter_context(optimizer.register_step_post_hook(leave("optimizer")))
        recorder.phase = "loss"
        yield


@contextmanager
def record_sharding(recorder: Recorder) -> Iterator[None]:
    """Let FSDP2 build its mesh with real tensors, and record the storages that it resizes, inside the context.

    FSDP2 keeps the storages of gathered parameters and frees their bytes with `resize_`, which is not dispatched.
    """
    make_mesh, resize = device_mesh.init_device_mesh, torch.UntypedStorage.resize_

    def make_real_mesh(*args: Any, **kwargs: Any) -> Any:
        with disable_current_modes():
            return make_mesh(*args, **kwargs)

    def resize_and_record(storage: torch.UntypedStorage, size: int) -> Any:
        resized = resize(storage, size)
        recorder.record_resize(storage)
        return resized

    device_mesh.init_device_mesh = make_real_mesh
    torch.UntypedStorage.resize_ = resize_and_record  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        device_mesh.init_device_mesh = make_mesh
        torch.UntypedStorage.resize_ = resize  # type: ignore[assignment, method-assign]


@contextmanager
def count_status_exchanges(trace: Trace) -> Iterator[None]:
    """Count the status exchanges before collectives in `trace`, without performing them."""
    use_control_group(_CountingControlGroup(trace))
    try:
        yield
    finally:
        use_control_group(None)


class _CountingControlGroup(ControlGroup):
    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def exchange_status(self) -> None:
        self._trace.status_exchanges += 1
