"""What tracing FSDP2 asks for: a mesh of real numbers, and storages that grow and shrink seen as such."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed import device_mesh
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes

from planner.trace.recorder import Recorder


@contextmanager
def sharding_seen(recorder: Recorder) -> Iterator[None]:
    """FSDP2 keeps gathered matrices' storages and gives back their bytes, which no operation tells."""
    make_mesh, resize = device_mesh.init_device_mesh, torch.UntypedStorage.resize_

    def make_real_mesh(*args: Any, **kwargs: Any) -> Any:
        with disable_current_modes():
            return make_mesh(*args, **kwargs)

    def resize_seen(storage: torch.UntypedStorage, size: int) -> Any:
        resized = resize(storage, size)
        recorder.resized(storage)
        return resized

    device_mesh.init_device_mesh = make_real_mesh
    torch.UntypedStorage.resize_ = resize_seen  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        device_mesh.init_device_mesh = make_mesh
        torch.UntypedStorage.resize_ = resize  # type: ignore[assignment, method-assign]
