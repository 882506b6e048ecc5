"""Accelerate and DDP as if many processes ran, in one process that sends nothing.

No `from __future__ import annotations` here: DDP reads a hook's annotations, and refuses them as text.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from torch._subclasses.fake_tensor import FakeTensor


@contextmanager
def fresh_accelerate(world_size: int) -> Iterator[None]:
    """Accelerate's singletons reset before and after; with `world_size` > 1, a process group that moves no data."""
    _reset_accelerate()
    try:
        with _fake_processes(world_size) if world_size > 1 else nullcontext():
            yield
    finally:
        _reset_accelerate()


@contextmanager
def _fake_processes(world_size: int) -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    environment = {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), "0"),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world_size)),
        "MASTER_ADDR": "localhost",  # accelerate wants one; nothing connects to it
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # else accelerate sets the number of threads, and warns
    }
    before = {name: os.environ.get(name) for name in (*environment, "MASTER_PORT")}  # which accelerate sets
    wrapper = torch.nn.parallel.DistributedDataParallel
    os.environ.update(environment)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    torch.nn.parallel.DistributedDataParallel = _Silent  # type: ignore[misc]
    try:
        yield
    finally:
        torch.nn.parallel.DistributedDataParallel = wrapper  # type: ignore[misc]
        dist.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class _Silent(torch.nn.parallel.DistributedDataParallel):
    """Nothing is sent: comparing and broadcasting the first weights would read them, and nobody answers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "init_sync": False})
        self.register_comm_hook(None, _keep_bucket)
        if isinstance(next(self.module.parameters()), FakeTensor):
            self.reducer = _KeepsBuckets(self.reducer)  # type: ignore[assignment]


class _KeepsBuckets:
    """The reducer without its new order of buckets at the second step, which it would agree on by real numbers."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False


def _keep_bucket(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
    """A reduction in place, as NCCL's is."""
    reduced: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    reduced.set_result(bucket.buffer())
    return reduced


def _reset_accelerate() -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
