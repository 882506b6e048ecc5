"""Simulate several Accelerate processes in one process that sends nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import patch_environment


@contextmanager
def fresh_accelerate(world_size: int) -> Iterator[None]:
    """Reset Accelerate's singletons before and after; with `world_size` > 1, use a process group that moves no data."""
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
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},  # required by accelerate; nothing connects to it
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # else accelerate sets it and warns
    }
    with patch_environment(**environment):
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _reset_accelerate() -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
