"""Encoders too big to replicate: matrices, their gradients and optimizer state divided over a node's devices (FSDP2).

torch's `fully_shard` gathers a block's matrices before it runs and frees them after. Everything else in the step stays
as it is, and so does the gradient. Vectors (biases, norms) stay whole: they are few, and 8-bit optimizers would keep
parts of them otherwise. Accelerate's own way into FSDP2 is not taken: it makes all of MoCo one unit, whose two sides
then can't run apart, and under bf16 reduces in 16 bits unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from moco_accel.networks.encoders import blocks

BLOCK_OF_8_BITS = 256
"""Numbers that share a scale in bitsandbytes' optimizers; a part holds whole blocks."""
LEAST_IN_8_BITS = 4096
"""Numbers; of tensors, and parts, of fewer they keep 32 bits."""


class Shards:
    """How a MoCo is divided over the devices of each of `num_nodes` nodes; every node has all of it."""

    def __init__(
        self, encoders: Sequence[nn.Module], heads: Sequence[nn.Module], device_type: str, num_nodes: int
    ) -> None:
        """Divides them in place."""
        per_node = dist.get_world_size() // num_nodes
        mesh = device_mesh.init_device_mesh(device_type, (num_nodes, per_node), mesh_dim_names=("node", "device"))
        self._mesh, self.between_nodes = mesh["device"], mesh.get_group("node") if num_nodes > 1 else None
        # encoders under one root: what FSDP2 notes of the momentum side's forwards, the other's backward has it forget
        self._roots = [self._unite(map(self.divided, encoders)), self._unite(map(self._divide, heads))]

    def divided(self, encoder: nn.Module) -> nn.Module:
        """`encoder`, of which one block at a time is whole."""
        before: FSDPModule | None = None
        for block in blocks(encoder):
            unit = self._divide(block)
            unit.register_forward_hook(_free_in_backward)  # type: ignore[attr-defined]
            if before is not None:  # backward comes to it next
                unit.set_modules_to_backward_prefetch([before])
            before = unit
        return self._divide(encoder)  # type: ignore[return-value]

    def _unite(self, sides: Iterable[object]) -> nn.Module:
        root: nn.Module = nn.Sequential(*sides)  # type: ignore[call-overload] # never run; a plain container can't be a root
        self._divide(root)
        fully_shard.state(root)._lazy_init()  # type: ignore[attr-defined]
        return root

    def _divide(self, module: nn.Module) -> FSDPModule:
        whole = {parameter for parameter in module.parameters() if not _divides(parameter, self._mesh.size())}
        return fully_shard(module, mesh=self._mesh, reshard_after_forward=True, ignored_params=whole)


def is_divided(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds: its part, or all of it."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def own_part(parameter: nn.Parameter) -> nn.Parameter:
    """What an optimizer takes: this process's part as a parameter of its own, or all of `parameter`."""
    return nn.Parameter(local(parameter)) if is_divided(parameter) else parameter


def share_gradient(parameter: nn.Parameter, part: nn.Parameter) -> None:
    """Have FSDP2 add up the gradient of `parameter` in that of its `part`."""
    if isinstance(parameter, DTensor):
        parameter.grad = like(part.grad, parameter)


def like(part: Tensor | None, divided: Tensor) -> DTensor:
    """What all processes' `part`s make together, each divided by rows as `divided` is."""
    assert part is not None and isinstance(divided, DTensor)  # noqa: PT018
    return DTensor.from_local(part, divided.device_mesh, [Shard(0)], run_check=False)


def part_of(whole: Tensor, divided: Tensor) -> Tensor:
    """This process's rows of `whole`, divided as `divided` is; all of it where that isn't divided."""
    if not isinstance(divided, DTensor):
        return whole
    return whole.chunk(divided.device_mesh.size())[divided.device_mesh.get_local_rank()]


def nobody() -> None:
    """Whom a process meets that is alone."""


def whole(tensor: Tensor, meet: Callable[[], object]) -> Tensor:
    """All of a tensor. All processes ask for the same ones in the same order; they `meet` before each is sent.

    One that fails between the two leaves the others waiting, until they are seen to have stalled (`watching`).
    """
    if not isinstance(tensor, DTensor):
        return tensor
    meet()
    return tensor.full_tensor()


def _divides(parameter: Tensor, processes: int) -> bool:
    if is_divided(parameter):
        return True
    rows, numbers = (*parameter.shape, 0)[0], parameter.numel() // processes
    return (
        parameter.ndim > 1 and rows % processes == 0 and numbers % BLOCK_OF_8_BITS == 0 and numbers >= LEAST_IN_8_BITS
    )


def _free_in_backward(block: nn.Module, _: object, __: object) -> None:
    """A micro-batch that is recomputed in backward needs one block at a time, as in its first forward."""
    if torch._C._current_graph_task_id() != -1:  # type: ignore[attr-defined]
        assert isinstance(block, FSDPModule)
        block.reshard()
