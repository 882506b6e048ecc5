"""What a recorder is told of a step: which module runs, and where each micro-batch begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from planner.trace.recorder import ENCODERS, HEADS, Recorder


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


@contextmanager
def phases(recorder: Recorder, moco: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Tell `recorder` which module runs, and mark where each micro-batch begins, while the context is open."""
    handles: list[Any] = []
    stack: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(recorder.phase)
            recorder.phase = name
            if name in ENCODERS and recorder.loop() == "recomputed":  # with which its backward begins
                recorder.backward_of = name

        return hook

    def begin_backward(name: str) -> None:
        recorder.backward_of = "heads" if name in HEADS else name
        if name in ENCODERS:
            recorder.mark("backward")

    def leave(name: str) -> Callable[..., None]:
        def hook(*arguments: Any) -> None:
            if name in ENCODERS:
                recorder.mark("through")
            output = arguments[-1]
            if isinstance(output, Tensor) and recorder.loop() == "forward" and output.requires_grad:
                output.register_hook(lambda _: begin_backward(name))
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
